//! What the host gives: each mechanism is tried for real in a short-lived child, not guessed from versions.

use std::io;

use landlock::ABI;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::landlock::{ABIS, empty_ruleset};
use super::{Layer, Tier, policy, seccomp, sys};
use crate::python::Python;

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
}

impl Probe {
    /// Tries every mechanism. Must run before any thread exists.
    pub fn of_host(python: &Python) -> Probe {
        let landlock = ABIS
            .into_iter()
            .find(|abi| sys::in_child(|| try_landlock(*abi)).is_ok_and(|errno| errno == 0));
        let layers = vec![
            layer(NO_NEW_PRIVILEGES, sys::in_child(|| errno_of(sys::set_no_new_privileges()))),
            layer(SECCOMP, sys::in_child(try_seccomp)),
            Layer {
                name: LANDLOCK,
                in_force: landlock.is_some(),
                detail: landlock
                    .map_or_else(|| absent_landlock(), |abi| format!("ABI {}", abi as i32)),
            },
            own_uids(python),
        ];
        Probe { layers, landlock }
    }

    /// The strongest tier whose layers all work.
    pub fn tier(&self) -> Option<Tier> {
        self.missing_for(Tier::Seccomp).is_none().then_some(Tier::Seccomp)
    }

    /// The first layer that `tier` demands and the host lacks.
    pub fn missing_for(&self, tier: Tier) -> Option<&Layer> {
        let demanded: &[&str] = match tier {
            Tier::Namespaces | Tier::Seccomp => &[NO_NEW_PRIVILEGES, SECCOMP],
            Tier::Rlimits => &[],
        };
        self.layers.iter().find(|layer| demanded.contains(&layer.name) && !layer.in_force)
    }

    /// Whether each worker gets a uid of its own.
    pub fn own_uids(&self) -> bool {
        self.layers.iter().any(|layer| layer.name == OWN_UIDS && layer.in_force)
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

fn absent_landlock() -> String {
    String::from("the kernel does not offer it")
}

/// Changes to a worker's uid and reads the interpreter as that: what it cannot read, it cannot import.
fn own_uids(python: &Python) -> Layer {
    let mut layer = layer(OWN_UIDS, sys::in_child(try_own_uid));
    if !Uid::effective().is_root() {
        layer.detail = String::from("the service does not run as root");
    } else if layer.in_force {
        let unreadable = python.libraries.iter().find(|path| {
            let read = || {
                let uid = try_own_uid();
                if uid != 0 { uid } else { errno_of(std::fs::metadata(path).map(drop)) }
            };
            !sys::in_child(read).is_ok_and(|errno| errno == 0)
        });
        if let Some(path) = unreadable {
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
    change().map_or_else(|errno| errno as i32, |()| 0)
}
