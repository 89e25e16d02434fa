//! The probe of the host: which sandbox mechanisms work. Each is tried in a short-lived child rather than guessed from
//! the version of the kernel.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use landlock::ABI;
use nix::sched::CloneFlags;
use nix::unistd::geteuid;

use super::attempts::{
    errno_of, try_landlock, try_limits, try_mount_namespace, try_namespace, try_own_uid,
    try_rlimits_of_zero, try_seccomp,
};
use super::landlock::ABIS;
use super::layer::Layer;
use super::namespaces::{Mounts, NAMESPACES, Plan, worker_steps};
use super::scratch::{ScratchError, ScratchRoot};
use super::sys::{SpawnError, SpawnStep};
use super::{policy, rlimits, sys, tasks, uids};
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
const RLIMITS: &str = "rlimits";
const ZERO_RLIMITS: &str = "rlimits of zero";
const UNREADABLE: &str = "unreadable binaries";
const FILE_RULES: &str = "file access control";
const OWN_UIDS: &str = "own uid per worker";

/// The layers that the tier `namespaces` demands. Every tier also uses Landlock and own uids if they work.
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
    RLIMITS,
];
/// The layers that the tier `seccomp` demands.
const SECCOMP_TIER: [&str; 5] = [PRCTL, NO_NEW_PRIVILEGES, SECCOMP, FILE_RULES, RLIMITS];
/// The layers that the tier `rlimits` demands.
const RLIMITS_TIER: [&str; 3] = [RLIMITS, ZERO_RLIMITS, UNREADABLE];

/// The findings of the probe.
pub struct Probe {
    /// Every mechanism that was tried.
    pub layers: Vec<Layer>,
    /// The newest version of Landlock that works; `None` if none works.
    pub landlock: Option<ABI>,
    /// The plan with which a zygote enters its namespaces; `None` if no plan works.
    pub plan: Option<Plan>,
    /// Whether the service can create the other namespaces only in a user namespace.
    pub needs_user_namespace: bool,
    /// The directory in which scratch directories are created and private roots are built.
    pub scratch: ScratchRoot,
    /// The existing paths that a worker may read.
    pub readable: Vec<PathBuf>,
    /// The largest number of processes and threads of the user of the service; `None` if the kernel does not limit them, or
    /// if workers do not share a uid.
    pub shared_tasks: Option<u64>,
    /// The uids of workers, if they have their own.
    pub worker_uids: Range<u32>,
}

impl Probe {
    /// Tries every mechanism. Must run while the process has a single thread; see [`sys::in_child`].
    ///
    /// # Errors
    /// When the scratch root cannot be created.
    pub fn of_host(config: &Config, python: &Python) -> Result<Probe, ScratchError> {
        let worker_uids = uids::choose();
        let scratch = ScratchRoot::create(worker_uids.clone())?;
        let mut readable = python.libraries.clone();
        readable.extend(policy::READABLE.iter().map(|(path, _)| PathBuf::from(path)));
        readable.retain(|path| path.exists());

        // A user namespace gives an unprivileged service the right to create the other namespaces. In it, the kernel
        // also counts the threads of workers that have no uid of their own.
        let privileged = try_namespace(CloneFlags::CLONE_NEWNS, false);
        let own_uid = sys::in_child(|| try_own_uid(worker_uids.start));
        let missing = uids::missing_capability();
        let user = !matches!((privileged, own_uid), (Ok(0), Ok(0))) || missing.is_some();
        let mut layers =
            vec![layer(USER_NAMESPACE, try_namespace(CloneFlags::CLONE_NEWUSER, false))];
        layers.extend(NAMESPACES.map(|(name, flag)| {
            let outcome = match flag {
                CloneFlags::CLONE_NEWNS => try_mount_namespace(&scratch.new_root(), user),
                _ => try_namespace(flag, user),
            };
            layer(name, outcome)
        }));
        let uid = (!user).then_some(worker_uids.start);
        let (root, plan) = private_root(config, python, &readable, &scratch, uid);
        layers.push(root);
        let landlock = ABIS
            .into_iter()
            .find(|abi| sys::in_child(|| try_landlock(*abi)).is_ok_and(|errno| errno == 0));
        let own_uids = own_uids(worker_uids.start, missing, &readable, plan.as_ref());
        let shared_tasks = if own_uids.works || plan.is_some() { None } else { tasks::limit() };
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
                RLIMITS,
                sys::in_child(|| {
                    // A worker's memory limit includes what its zygote has mapped, which is not known yet. 4 GiB stand
                    // in for it.
                    let memory = u64::from(u32::MAX) + config.memory_bytes;
                    try_limits(&rlimits::limits(
                        config,
                        config.timeout,
                        memory,
                        policy::MAX_THREADS,
                    ))
                }),
            ),
            layer(ZERO_RLIMITS, sys::in_child(try_rlimits_of_zero)),
            unreadable_binaries(python),
        ]);
        Ok(Probe {
            layers,
            landlock,
            plan,
            needs_user_namespace: user,
            scratch,
            readable,
            shared_tasks,
            worker_uids,
        })
    }

    /// The strongest tier whose layers all work; `None` if no tier is complete.
    pub fn tier(&self) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| self.missing_for(*tier).is_none())
    }

    /// The first layer that `tier` demands and that does not work; `None` if all work.
    pub fn missing_for(&self, tier: Tier) -> Option<&Layer> {
        let demanded: &[&str] = match tier {
            Tier::Namespaces => &NAMESPACES_TIER,
            Tier::Seccomp => &SECCOMP_TIER,
            Tier::Rlimits => &RLIMITS_TIER,
        };
        self.layers.iter().find(|layer| {
            let needed = match layer.name {
                USER_NAMESPACE => self.needs_user_namespace,
                // A private root by chroot does not need it.
                MOUNT_NAMESPACE => {
                    self.plan.as_ref().is_none_or(|plan| plan.mounts != Some(Mounts::Plain))
                }
                _ => true,
            };
            demanded.contains(&layer.name) && needed && !layer.works
        })
    }

    /// Returns whether the layer with this name works.
    pub fn has(&self, name: &str) -> bool {
        self.layers.iter().any(|layer| layer.name == name && layer.works)
    }

    /// Returns whether each worker gets its own uid.
    pub fn own_uids(&self) -> bool {
        self.has(OWN_UIDS)
    }
}

/// A worker that runs as root owns the files of the host, even without capabilities. This is accepted only if Landlock
/// denies access to them.
fn file_rules(landlock: bool, own_uids: &Layer) -> Layer {
    let works = landlock || own_uids.works || !geteuid().is_root();
    let detail = if works {
        String::from("works")
    } else {
        format!("workers would run as root without Landlock: {}", own_uids.detail)
    };
    Layer { name: FILE_RULES, works, detail }
}

/// Whether scripts can have threads, since something limits their number.
pub(super) fn threads_layer(counted: bool) -> Layer {
    let detail = match counted {
        true => "works",
        false => {
            "the kernel does not limit the threads of this user, as it does not for root, so scripts cannot start any"
        }
    };
    Layer { name: "limited threads", works: counted, detail: String::from(detail) }
}

/// The kernel makes a process non-dumpable, without prctl(2), if its user can execute but not read its binary.
/// Processes with the same uid then cannot read its memory and environment. See
/// <https://man7.org/linux/man-pages/man2/PR_SET_DUMPABLE.2const.html>.
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
                "this user can read {}; install it owned by root with mode 0711",
                binary.display()
            ),
        },
    }
}

/// Tries all steps with which a zygote and a worker enter their namespaces. The worker changes to `uid`, if given. Returns
/// the plan that works, if any.
fn private_root(
    config: &Config,
    python: &Python,
    readable: &[PathBuf],
    scratch: &ScratchRoot,
    uid: Option<u32>,
) -> (Layer, Option<Plan>) {
    // Without own uids, the other namespaces need a user namespace.
    let user = uid.is_none();
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
    let root = |works, detail| Layer { name: PRIVATE_ROOT, works, detail };
    let error = match attempt(Mounts::Full) {
        Ok(plan) => return (root(true, String::from("works")), Some(plan)),
        Err(error) => error,
    };
    let fallbacks = [
        (Mounts::Moved, "a moved root", true),
        // Without read-only mounts, workers with the uid of the service could write to its files.
        (Mounts::Plain, "chroot", uid.is_some()),
    ];
    for (mounts, how, is_safe) in fallbacks {
        if is_safe && let Ok(plan) = attempt(mounts) {
            return (root(true, format!("works, by {how}: {error}")), Some(plan));
        }
    }
    (root(false, error.to_string()), None)
}

/// A layer that works if `outcome` is 0. Any other value is an errno.
fn layer(name: &'static str, outcome: io::Result<i32>) -> Layer {
    let (works, detail) = match outcome {
        Ok(0) => (true, String::from("works")),
        Ok(errno) => (false, io::Error::from_raw_os_error(errno).to_string()),
        Err(error) => (false, error.to_string()),
    };
    Layer { name, works, detail }
}

/// Changes to `uid`, one of the worker uids, and checks that it can reach every readable path, since it could import
/// nothing otherwise. `missing` is a capability that the service needs for them and does not have.
/// In a private root all of them can be reached. A user namespace maps the uid of the service only, so workers in it
/// get no uid of their own.
fn own_uids(uid: u32, missing: Option<&str>, readable: &[PathBuf], plan: Option<&Plan>) -> Layer {
    let mut layer = layer(OWN_UIDS, sys::in_child(|| try_own_uid(uid)));
    let changes = layer.works;
    let mut fail = |detail: String| layer = Layer { name: OWN_UIDS, works: false, detail };
    if !geteuid().is_root() {
        fail(String::from("the service does not run as root"));
    } else if let Some(name) = missing {
        fail(format!("the service does not have {name}"));
    } else if plan.is_some_and(Plan::has_user_namespace) {
        fail(String::from("the user namespace of the zygotes maps only one uid"));
    } else if plan.is_none() && changes {
        let as_worker = |path: &PathBuf| match try_own_uid(uid) {
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
