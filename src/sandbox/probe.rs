//! What the host gives: each mechanism is tried for real in a short-lived child, not guessed from versions.

use std::io;

use std::path::PathBuf;

use landlock::ABI;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use super::landlock::{ABIS, empty_ruleset};
use super::namespaces::{NAMESPACES, Plan, worker_steps};
use super::scratch::ScratchRoot;
use super::sys::SpawnError;
use super::{Layer, SandboxError, Tier, policy, seccomp, sys};
use crate::config::Config;
use crate::python::Python;

const USER_NAMESPACE: &str = "user namespace";
const PRIVATE_ROOT: &str = "private root and scratch";
const NO_NEW_PRIVILEGES: &str = "no_new_privs";
const SECCOMP: &str = "seccomp";
const LANDLOCK: &str = "landlock";
const OWN_UIDS: &str = "own uid per worker";

/// What was found.
pub struct Probe {
    /// Every mechanism that was tried.
    pub layers: Vec<Layer>,
    /// The newest version of Landlock that works.
    pub landlock: Option<ABI>,
    /// How a zygote enters its namespaces, where it can.
    pub plan: Option<Plan>,
    /// The directory that scratch directories, and the zygote's root while it is built, are made in.
    pub scratch: ScratchRoot,
    /// What a worker may read, where it exists.
    pub readable: Vec<PathBuf>,
}

impl Probe {
    /// Tries every mechanism. Must run before any thread exists.
    ///
    /// # Errors
    /// When there is no place for scratch directories.
    pub fn of_host(config: &Config, python: &Python) -> Result<Probe, SandboxError> {
        let scratch = ScratchRoot::create()?;
        let mut readable = python.libraries.clone();
        readable.extend(policy::READABLE.iter().map(|(path, _)| PathBuf::from(path)));
        readable.retain(|path| path.exists());

        // A user namespace gives the right to make the others, where we lack it.
        let privileged = sys::in_child(|| errno_of_nix(unshare(CloneFlags::CLONE_NEWNS)));
        let user = !matches!(privileged, Ok(0));
        let mut layers = vec![user_namespace(user)];
        layers.extend(NAMESPACES.map(|(name, flag)| layer(name, try_namespace(flag, user))));
        let (root, plan) = private_root(config, python, &readable, &scratch, user);
        layers.push(root);
        let landlock = ABIS
            .into_iter()
            .find(|abi| sys::in_child(|| try_landlock(*abi)).is_ok_and(|errno| errno == 0));
        layers.extend([
            layer(NO_NEW_PRIVILEGES, sys::in_child(|| errno_of(sys::set_no_new_privileges()))),
            layer(SECCOMP, sys::in_child(try_seccomp)),
            Layer {
                name: LANDLOCK,
                in_force: landlock.is_some(),
                detail: landlock.map_or_else(
                    || String::from("the kernel does not offer it"),
                    |abi| format!("ABI {}", abi as i32),
                ),
            },
            own_uids(&readable, plan.is_some()),
        ]);
        Ok(Probe { layers, landlock, plan, scratch, readable })
    }

    /// The strongest tier whose layers all work.
    pub fn tier(&self) -> Option<Tier> {
        [Tier::Namespaces, Tier::Seccomp].into_iter().find(|tier| self.missing_for(*tier).is_none())
    }

    /// The first layer that `tier` demands and the host lacks.
    pub fn missing_for(&self, tier: Tier) -> Option<&Layer> {
        const SECCOMP_TIER: [&str; 2] = [NO_NEW_PRIVILEGES, SECCOMP];
        self.layers.iter().find(|layer| {
            let demanded = match tier {
                Tier::Namespaces => layer.name != LANDLOCK && layer.name != OWN_UIDS,
                Tier::Seccomp => SECCOMP_TIER.contains(&layer.name),
                Tier::Rlimits => false,
            };
            demanded && !layer.in_force
        })
    }

    /// Whether each worker gets a uid of its own.
    pub fn own_uids(&self) -> bool {
        self.layers.iter().any(|layer| layer.name == OWN_UIDS && layer.in_force)
    }
}

/// The user namespace, which the service needs where it may not make the others by itself.
fn user_namespace(needed: bool) -> Layer {
    if needed {
        layer(USER_NAMESPACE, sys::in_child(|| errno_of_nix(unshare(CloneFlags::CLONE_NEWUSER))))
    } else {
        let detail = String::from("not needed: the service may make the others itself");
        Layer { name: USER_NAMESPACE, in_force: true, detail }
    }
}

fn try_namespace(flag: CloneFlags, user: bool) -> io::Result<i32> {
    let flags = if user { flag | CloneFlags::CLONE_NEWUSER } else { flag };
    sys::in_child(|| errno_of_nix(unshare(flags)))
}

/// Walks the whole way of a zygote and of a worker through their namespaces.
fn private_root(
    config: &Config,
    python: &Python,
    readable: &[PathBuf],
    scratch: &ScratchRoot,
    user: bool,
) -> (Layer, Option<Plan>) {
    let uid = (!user).then_some(policy::WORKER_UIDS.start);
    let attempt = || -> Result<Plan, SpawnError> {
        let unreadable = |source| SpawnError { step: String::from("plan"), source };
        let plan = Plan::for_zygote(python, readable, &scratch.new_root(), &scratch.home(), user)
            .map_err(unreadable)?;
        let mut trial = plan.clone();
        trial.steps.extend(worker_steps(config.scratch_bytes, uid).map_err(unreadable)?);
        sys::try_plan(&trial)?;
        Ok(plan)
    };
    match attempt() {
        Ok(plan) => {
            let detail = String::from("works");
            (Layer { name: PRIVATE_ROOT, in_force: true, detail }, Some(plan))
        }
        Err(error) => {
            let detail = error.to_string();
            (Layer { name: PRIVATE_ROOT, in_force: false, detail }, None)
        }
    }
}

fn layer(name: &'static str, outcome: io::Result<i32>) -> Layer {
    let (in_force, detail) = match outcome {
        Ok(0) => (true, String::from("works")),
        Ok(errno) => (false, io::Error::from_raw_os_error(errno).to_string()),
        Err(error) => (false, error.to_string()),
    };
    Layer { name, in_force, detail }
}

fn errno_of(outcome: io::Result<()>) -> i32 {
    outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0)
}

fn errno_of_nix(outcome: nix::Result<()>) -> i32 {
    outcome.map_or_else(|errno| errno as i32, |()| 0)
}

/// Installs the real filters, then makes a call that they must refuse and one that they must allow.
fn try_seccomp() -> i32 {
    let Ok(filters) = seccomp::filters(true) else {
        return libc::EINVAL;
    };
    for filter in filters {
        match seccompiler::apply_filter(&filter) {
            Ok(()) => {}
            Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error)) => {
                return error.raw_os_error().unwrap_or(libc::EIO);
            }
            Err(_) => return libc::EINVAL,
        }
    }
    let refused = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    );
    match refused {
        Err(nix::errno::Errno::EPERM) if nix::unistd::getpid().as_raw() > 0 => 0,
        _ => libc::ENOTSUP,
    }
}

/// Enters a ruleset that allows nothing, then opens a file, which must fail.
fn try_landlock(abi: ABI) -> i32 {
    let Ok(status) = empty_ruleset(abi).and_then(|ruleset| ruleset.restrict_self()) else {
        return libc::EOPNOTSUPP;
    };
    let enforced = status.ruleset == landlock::RulesetStatus::FullyEnforced;
    let refused = std::fs::File::open("/dev/null")
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if enforced && refused { 0 } else { libc::EOPNOTSUPP }
}

/// Changes to a worker's uid and reads the interpreter as that: what it cannot read, it cannot import. In a private root
/// everything that is shown can be reached.
fn own_uids(readable: &[PathBuf], private_root: bool) -> Layer {
    let mut layer = layer(OWN_UIDS, sys::in_child(try_own_uid));
    if !geteuid().is_root() {
        layer.detail = String::from("the service does not run as root");
    } else if layer.in_force && !private_root {
        let as_worker = |path: &PathBuf| match try_own_uid() {
            0 => errno_of(std::fs::metadata(path).map(drop)),
            errno => errno,
        };
        let reads = |path: &&PathBuf| !matches!(sys::in_child(|| as_worker(path)), Ok(0));
        if let Some(path) = readable.iter().find(reads) {
            layer.in_force = false;
            layer.detail = format!("a worker's uid cannot read {}", path.display());
        }
    }
    layer
}

fn try_own_uid() -> i32 {
    let uid = policy::WORKER_UIDS.start;
    let change = || -> nix::Result<()> {
        setgroups(&[])?;
        let gid = Gid::from_raw(uid);
        setresgid(gid, gid, gid)?;
        let uid = Uid::from_raw(uid);
        setresuid(uid, uid, uid)
    };
    errno_of_nix(change())
}
