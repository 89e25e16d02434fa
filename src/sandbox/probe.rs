//! What the host gives: each mechanism is tried for real in a short-lived child, not guessed from versions.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use landlock::ABI;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use super::landlock::{ABIS, empty_ruleset};
use super::layer::Layer;
use super::namespaces::{Mounts, NAMESPACES, Plan, worker_steps};
use super::rlimits::Limit;
use super::scratch::{ScratchError, ScratchRoot};
use super::sys::{SpawnError, SpawnStep};
use super::{policy, rlimits, seccomp, sys};
use crate::config::Config;
use crate::config::choices::Tier;
use crate::python::interpreter::Python;

const USER_NAMESPACE: &str = "user namespace";
const MOUNT_NAMESPACE: &str = NAMESPACES[0].0;
const PRIVATE_ROOT: &str = "private root and scratch";
const NO_NEW_PRIVILEGES: &str = "no_new_privs";
const SECCOMP: &str = "seccomp";
const LANDLOCK: &str = "landlock";
pub(super) const PRCTL: &str = "prctl";
const RLIMITS_SET: &str = "rlimits";
const RLIMITS: &str = "rlimits of zero";
const UNREADABLE: &str = "unreadable binaries";
const FILE_RULES: &str = "files are not root's";
const OWN_UIDS: &str = "own uid per worker";

/// The layers that each tier demands. Landlock and own uids are taken where they are.
const NAMESPACES_TIER: [&str; 11] = [
    USER_NAMESPACE,
    MOUNT_NAMESPACE,
    NAMESPACES[1].0,
    NAMESPACES[2].0,
    NAMESPACES[3].0,
    NAMESPACES[4].0,
    PRIVATE_ROOT,
    PRCTL,
    NO_NEW_PRIVILEGES,
    SECCOMP,
    RLIMITS_SET,
];
const SECCOMP_TIER: [&str; 5] = [PRCTL, NO_NEW_PRIVILEGES, SECCOMP, FILE_RULES, RLIMITS_SET];
const RLIMITS_TIER: [&str; 3] = [RLIMITS_SET, RLIMITS, UNREADABLE];

/// What was found.
pub struct Probe {
    /// Every mechanism that was tried.
    pub layers: Vec<Layer>,
    /// The newest version of Landlock that works.
    pub landlock: Option<ABI>,
    /// How a zygote enters its namespaces, where it can.
    pub plan: Option<Plan>,
    /// Whether the service may make the other namespaces only within a user namespace.
    pub needs_user_namespace: bool,
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
    pub fn of_host(config: &Config, python: &Python) -> Result<Probe, ScratchError> {
        let scratch = ScratchRoot::create()?;
        let mut readable = python.libraries.clone();
        readable.extend(policy::READABLE.iter().map(|(path, _)| PathBuf::from(path)));
        readable.retain(|path| path.exists());

        // A user namespace gives the right to make the others, where we lack it, and counts the threads of workers that
        // can have no uid of their own.
        let privileged = sys::in_child(|| errno_of_nix(unshare(CloneFlags::CLONE_NEWNS)));
        let uids = sys::in_child(try_own_uid);
        let user = !matches!((privileged, uids), (Ok(0), Ok(0)));
        let mut layers =
            vec![layer(USER_NAMESPACE, try_namespace(CloneFlags::CLONE_NEWUSER, false))];
        layers.extend(NAMESPACES.map(|(name, flag)| {
            let answer = match flag {
                CloneFlags::CLONE_NEWNS => try_mount_namespace(&scratch.new_root(), user),
                _ => try_namespace(flag, user),
            };
            layer(name, answer)
        }));
        let (root, plan) = private_root(config, python, &readable, &scratch, user);
        layers.push(root);
        let landlock = ABIS
            .into_iter()
            .find(|abi| sys::in_child(|| try_landlock(*abi)).is_ok_and(|errno| errno == 0));
        let own_uids = own_uids(&readable, plan.as_ref());
        layers.extend([
            layer(NO_NEW_PRIVILEGES, sys::in_child(|| errno_of(sys::set_no_new_privileges()))),
            layer(SECCOMP, sys::in_child(try_seccomp)),
            Layer {
                name: LANDLOCK,
                works: landlock.is_some(),
                detail: landlock.map_or_else(
                    || String::from("the kernel does not offer it"),
                    |abi| format!("ABI {}", abi as i32),
                ),
            },
            own_uids.clone(),
            file_rules(landlock.is_some(), &own_uids),
            layer(PRCTL, sys::in_child(|| errno_of(sys::set_non_dumpable()))),
            layer(
                RLIMITS_SET,
                sys::in_child(|| {
                    let memory = u64::from(u32::MAX) + config.memory_bytes;
                    try_limits(&rlimits::limits(config, config.timeout, memory))
                }),
            ),
            layer(RLIMITS, sys::in_child(try_rlimits_of_zero)),
            unreadable_binaries(python),
        ]);
        Ok(Probe { layers, landlock, plan, needs_user_namespace: user, scratch, readable })
    }

    /// The strongest tier whose layers all work.
    pub fn tier(&self) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| self.missing_for(*tier).is_none())
    }

    /// The first layer that `tier` demands and the host lacks.
    pub fn missing_for(&self, tier: Tier) -> Option<&Layer> {
        let demanded: &[&str] = match tier {
            Tier::Namespaces => &NAMESPACES_TIER,
            Tier::Seccomp => &SECCOMP_TIER,
            Tier::Rlimits => &RLIMITS_TIER,
        };
        self.layers.iter().find(|layer| {
            let needed = match layer.name {
                USER_NAMESPACE => self.needs_user_namespace,
                // A root by chroot does without.
                MOUNT_NAMESPACE => {
                    self.plan.as_ref().is_none_or(|plan| plan.mounts != Some(Mounts::Plain))
                }
                _ => true,
            };
            demanded.contains(&layer.name) && needed && !layer.works
        })
    }

    /// Whether the layer of that name works here.
    pub fn has(&self, name: &str) -> bool {
        self.layers.iter().any(|layer| layer.name == name && layer.works)
    }

    /// Whether each worker gets a uid of its own.
    pub fn own_uids(&self) -> bool {
        self.has(OWN_UIDS)
    }
}

/// A worker that stays root owns the host's files, whatever it has given up: Landlock must then keep it from them.
fn file_rules(landlock: bool, own_uids: &Layer) -> Layer {
    let works = landlock || own_uids.works || !geteuid().is_root();
    let detail = if works {
        String::from("works")
    } else {
        format!("workers would be root, without Landlock, since {}", own_uids.detail)
    };
    Layer { name: FILE_RULES, works, detail }
}

fn try_limits(limits: &[Limit]) -> i32 {
    errno_of_nix(limits.iter().try_for_each(Limit::set))
}

/// Sets the late limits, then tries what they must make impossible. Root may fork past them.
fn try_rlimits_of_zero() -> i32 {
    match try_limits(&rlimits::late_limits()) {
        0 => {}
        errno => return errno,
    }
    let opened = std::fs::File::open("/dev/null").is_ok();
    let forked = sys::in_child(|| 0).is_ok();
    if opened || forked { libc::ENOTSUP } else { 0 }
}

/// A process whose binary its user may execute but not read is not dumpable, with no prctl: nobody of the same uid
/// can read its memory or its environment.
fn unreadable_binaries(python: &Python) -> Layer {
    let readable = [std::env::current_exe().ok(), Some(python.program.clone())]
        .into_iter()
        .flatten()
        .find(|binary| std::fs::File::open(binary).is_ok());
    match readable {
        None => Layer { name: UNREADABLE, works: true, detail: String::from("works") },
        Some(binary) => Layer {
            name: UNREADABLE,
            works: false,
            detail: format!(
                "this user can read {}; install it root-owned and 0711",
                binary.display()
            ),
        },
    }
}

fn try_namespace(flag: CloneFlags, user: bool) -> io::Result<i32> {
    let flags = if user { flag | CloneFlags::CLONE_NEWUSER } else { flag };
    sys::in_child(|| errno_of_nix(unshare(flags)))
}

/// Mounts something in a namespace of its own, which must not be seen from outside.
fn try_mount_namespace(place: &Path, user: bool) -> io::Result<i32> {
    let before = std::fs::metadata(place)?.dev();
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWUSER, user);
    let none = None::<&str>;
    let answer = sys::in_child(|| {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        errno_of_nix(unshare(flags).and_then(|()| {
            // Where this is not known, nothing spreads, or everything is seen.
            let _ = mount(none, "/", none, private, none);
            mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none)
        }))
    })?;
    if std::fs::metadata(place)?.dev() == before {
        return Ok(answer);
    }
    umount(place)?;
    Ok(libc::ENOTSUP)
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
    let attempt = |mounts| -> Result<Plan, SpawnError> {
        let unreadable = |source| SpawnError { step: SpawnStep::Plan, source };
        let (root, home) = (scratch.new_root(), scratch.home());
        let plan =
            Plan::for_zygote(python, readable, &root, &home, user, mounts).map_err(unreadable)?;
        let mut trial = plan.clone();
        let worker = worker_steps(config.scratch_bytes, uid, mounts).map_err(unreadable)?;
        trial.steps.extend(worker);
        sys::try_plan(&trial)?;
        Ok(plan)
    };
    let (outcome, detail) = match attempt(Mounts::Full) {
        // Without uids of their own, workers could write to what the service owns.
        Err(error) if uid.is_some() => (
            attempt(Mounts::Plain).map_err(|_| error),
            "works, by chroot: this kernel mounts nothing read-only",
        ),
        outcome => (outcome, "works"),
    };
    match outcome {
        Ok(plan) => {
            (Layer { name: PRIVATE_ROOT, works: true, detail: String::from(detail) }, Some(plan))
        }
        Err(error) => (Layer { name: PRIVATE_ROOT, works: false, detail: error.to_string() }, None),
    }
}

fn layer(name: &'static str, outcome: io::Result<i32>) -> Layer {
    let (works, detail) = match outcome {
        Ok(0) => (true, String::from("works")),
        Ok(errno) => (false, io::Error::from_raw_os_error(errno).to_string()),
        Err(error) => (false, error.to_string()),
    };
    Layer { name, works, detail }
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
/// everything that is shown can be reached; a user namespace knows no uid but the service's.
fn own_uids(readable: &[PathBuf], plan: Option<&Plan>) -> Layer {
    let mut layer = layer(OWN_UIDS, sys::in_child(try_own_uid));
    let changes = layer.works;
    let mut fail = |detail: String| layer = Layer { name: OWN_UIDS, works: false, detail };
    if !geteuid().is_root() {
        fail(String::from("the service does not run as root"));
    } else if plan.is_some_and(Plan::has_user_namespace) {
        fail(String::from("the user namespace of the zygotes knows no other uid"));
    } else if plan.is_none() && changes {
        let as_worker = |path: &PathBuf| match try_own_uid() {
            0 => errno_of(std::fs::metadata(path).map(drop)),
            errno => errno,
        };
        let unreadable = |path: &&PathBuf| !matches!(sys::in_child(|| as_worker(path)), Ok(0));
        if let Some(path) = readable.iter().find(unreadable) {
            fail(format!("a worker's uid cannot read {}", path.display()));
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
