//! The sandbox: what a worker may do, the mechanisms that enforce it on this host, and the resources of each worker.

mod attempts;
pub mod jail;
mod janitor;
pub mod landlock;
pub mod layer;
pub mod namespaces;
mod ownership;
pub mod policy;
pub mod probe;
pub mod process;
pub mod procfs;
mod program;
mod public;
mod removal;
pub mod rlimits;
pub mod scratch;
pub mod seccomp;
mod standing;
pub mod sweep;
pub mod sys;
pub mod system_calls;
mod tasks;
mod uids;
pub mod usage;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use mainbox_zygote::messages::{Instruction, Policy};
use serde::Serialize;

use self::jail::{Contamination, Jail};
use self::janitor::Janitor;
use self::layer::Layer;
use self::namespaces::{Mounts, Plan};
use self::probe::Probe;
use self::rlimits::Limit;
use self::scratch::{Scratch, ScratchError, ScratchRoot};
use self::sweep::Sweeper;
use self::system_calls::Workers;
use self::uids::{OwnUid, Uids};
use crate::config::Config;
use crate::config::choices::{Platform, Tier};

/// Why the sandbox, or the jail of a worker, could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The host offers a weaker tier than `MAINBOX_FLOOR` demands.
    #[error("MAINBOX_FLOOR is {floor}, but this host lacks the layer `{layer}`: {detail}")]
    BelowFloor {
        /// The demanded tier.
        floor: &'static str,
        /// The first layer of that tier that does not work.
        layer: &'static str,
        /// The reason why the layer does not work.
        detail: String,
    },
    /// The scratch root, or a scratch directory in it, could not be created.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The leftovers of an earlier process of this service could not be removed.
    #[error("cannot remove the leftovers of an earlier process: {0}")]
    Leftovers(std::io::Error),
    /// The Landlock ruleset of a worker could not be built.
    #[error(transparent)]
    Landlock(#[from] landlock::LandlockError),
    /// The descriptor of the common Landlock ruleset could not be duplicated for a worker.
    #[error("cannot duplicate the descriptor of the Landlock ruleset: {0}")]
    RulesetDescriptor(std::io::Error),
    /// The thread that removes leftovers could not be created.
    #[error("cannot create the thread that removes leftovers: {0}")]
    Janitor(std::io::Error),
    /// Every worker uid is in use.
    #[error("every worker uid is in use")]
    NoUid,
}

/// The sandbox of this process: the tier in force and the source of the jails of workers.
pub struct Sandbox {
    /// The tier in force; `None` if the host offers no tier and `MAINBOX_FLOOR` is `none`.
    pub tier: Option<Tier>,
    /// Every mechanism and whether it works on this host.
    pub layers: Vec<Layer>,
    landlock: Option<::landlock::ABI>,
    /// The ruleset of all workers, if they have their scratch directories at the same path.
    common_ruleset: Mutex<Option<OwnedFd>>,
    uids: Option<Uids>,
    /// Whether workers share a uid and can write where the others can read.
    shares_files: bool,
    readable: Vec<PathBuf>,
    // Before the scratch root, which is removed when it is dropped, so that the two do not remove the same files.
    janitor: Janitor,
    scratch: ScratchRoot,
    scratch_generation: AtomicU64,
    /// The workers for which the filter is made; `None` if they install none.
    workers: Option<Workers>,
    /// The largest number of processes and threads of the uid of a worker.
    max_tasks: u64,
    plan: Plan,
    prctl: bool,
    sweeper: Option<Sweeper>,
    contamination: Contamination,
}

/// What Python in a zygote must know of the sandbox. It receives it once, when it starts.
#[derive(Clone, Debug, Serialize)]
pub struct Lockdown {
    /// Whether workers install a seccomp filter.
    pub filtered: bool,
    /// Whether workers can have threads.
    pub threads: bool,
    /// The largest number of threads of a worker if the kernel may not hold it: since workers share a uid, or since the user
    /// of the service is root outside its user namespace.
    pub max_threads: Option<u64>,
    /// Whether the filter refuses to change the mode, the times or the size of a file by its path.
    pub by_descriptor: bool,
    /// Whether prctl(2) works, so that a process can become non-dumpable.
    pub prctl: bool,
    /// Where a zygote can mount a writable file system while it imports; `None` if it cannot mount one.
    pub home: Option<&'static str>,
    /// The scratch directory that workers probably have, as they see it.
    pub scratch: &'static str,
    /// Limits that a worker sets after the imports of the script and before its first line.
    pub late_limits: Vec<Limit>,
}

impl Sandbox {
    /// Chooses the strongest tier that `probe` found to work. In the tier `rlimits` on AWS Lambda, it also removes the
    /// leftovers of earlier processes.
    ///
    /// # Errors
    /// When that tier is below the configured floor, or leftovers cannot be removed.
    pub fn establish(config: &Config, probe: Probe) -> Result<Sandbox, SandboxError> {
        let tier = probe.tier();
        if let Some(floor) = config.floor
            && tier.is_none_or(|tier| tier > floor)
        {
            let missing = probe.missing_for(floor);
            return Err(SandboxError::BelowFloor {
                floor: floor.name(),
                layer: missing.map_or("tier", |layer| layer.name),
                detail: missing.map_or_else(String::new, |layer| layer.detail.clone()),
            });
        }
        let own_uids = probe.own_uids();
        let shares_uid = tier == Some(Tier::Seccomp) && !own_uids;
        let owned = shares_uid.then(|| ownership::first_owned(&probe.readable)).flatten();
        let workers = match tier {
            Some(Tier::Namespaces) => Some(Workers::APART),
            Some(Tier::Seccomp) if own_uids => Some(Workers::APART),
            Some(Tier::Seccomp) => Some(Workers {
                own_uid: false,
                // Without Landlock, a worker can open whatever the service owns.
                owners: probe.landlock.is_none() || owned.is_some(),
                counted: probe.shared_tasks.is_some(),
            }),
            Some(Tier::Rlimits) | None => None,
        };
        let max_tasks = match probe.shared_tasks {
            Some(tasks) if shares_uid => tasks,
            _ => policy::MAX_THREADS,
        };
        let prctl = probe.has(probe::PRCTL);
        // The tier namespaces, and seccomp with Landlock, let a worker write only to its scratch directory and create no
        // IPC object, so there is nothing to sweep.
        let open = matches!(tier, Some(Tier::Seccomp | Tier::Rlimits)) && probe.landlock.is_none();
        let files = tier != Some(Tier::Rlimits);
        // What a worker leaves is known by its uid only, so it must have one that no other process has. The environment of
        // AWS Lambda belongs to this process alone.
        let on_lambda = config.platform == Platform::Lambda;
        let keep = files.then(|| probe.scratch.path().to_owned());
        let (sweeper, sweeping) = match open {
            true => sweep::prepare(own_uids || on_lambda, own_uids, keep),
            false => (None, sweep::layer("works", true)),
        };
        // Workers that cannot open files need no scratch root. Since they have the uid of the service, a script could
        // only leave something in it.
        if !files {
            removal::remove(probe.scratch.path()).map_err(SandboxError::Leftovers)?;
        }
        // AWS Lambda reuses the environment of a process that died.
        if let (true, Some(Tier::Rlimits), Some(sweeper)) = (on_lambda, tier, &sweeper) {
            sweeper.clear().map_err(SandboxError::Leftovers)?;
        }
        let counted = workers.is_none_or(|workers| workers.counted);
        let more_layers = [sweeping, ownership::layer(owned), probe::threads_layer(counted)];
        let plan = probe.plan.filter(|_| tier == Some(Tier::Namespaces)).unwrap_or_default();
        Ok(Sandbox {
            tier,
            common_ruleset: Mutex::default(),
            landlock: probe.landlock,
            shares_files: open && !own_uids,
            uids: own_uids.then(|| Uids::new(probe.worker_uids)),
            layers: probe.layers.into_iter().chain(more_layers).collect(),
            readable: probe.readable,
            janitor: Janitor::start().map_err(SandboxError::Janitor)?,
            scratch: probe.scratch,
            scratch_generation: AtomicU64::new(0),
            plan,
            workers,
            max_tasks,
            prctl,
            sweeper,
            contamination: Contamination::default(),
        })
    }

    /// Returns whether a worker must be gone before the next script may run, and its leftovers removed as far as they can
    /// be. This is so if workers share a uid and no mechanism keeps their files apart.
    pub fn one_at_a_time(&self) -> bool {
        self.shares_files
    }

    /// Returns whether a script can open files, and so import modules that its zygote has not imported.
    pub fn opens_files(&self) -> bool {
        self.tier != Some(Tier::Rlimits)
    }

    /// Returns whether the leftovers of a worker could not be removed, so that another script could read them.
    pub fn is_contaminated(&self) -> bool {
        self.contamination.any()
    }

    /// Returns whether a worker can read and write only the files that the policy names. Without Landlock or a private
    /// root, a worker with its own uid can also read world-readable files and write to world-writable directories,
    /// which are swept when it ends.
    pub fn confines_files(&self) -> bool {
        matches!(self.tier, Some(Tier::Namespaces | Tier::Rlimits)) || self.landlock.is_some()
    }

    /// The name of the tier in force, or `none`.
    pub fn tier_name(&self) -> &'static str {
        self.tier.map_or("none", Tier::name)
    }

    /// The seccomp filter of workers; empty if they install none.
    pub fn filter(&self) -> Vec<Instruction> {
        self.workers.map_or_else(Vec::new, |workers| seccomp::encode(&seccomp::filter(workers)))
    }

    /// The parts of the lockdown that are the same for all workers, with the encoded `filter`.
    pub fn policy<'a>(&self, filter: &'a mut [Instruction]) -> Policy<'a> {
        Policy {
            prctl: self.prctl,
            user_namespace: self.plan.has_user_namespace(),
            own_process: policy::OWN_PROCESS,
            filter,
        }
    }

    /// What Python in a zygote must know.
    pub fn lockdown(&self) -> Lockdown {
        Lockdown {
            filtered: self.workers.is_some(),
            threads: match self.workers {
                Some(workers) => workers.counted,
                None => self.tier != Some(Tier::Rlimits),
            },
            max_threads: (self.workers.is_some() && self.uids.is_none())
                .then_some(policy::MAX_THREADS),
            by_descriptor: self.shares_uid(),
            prctl: self.prctl,
            home: self.plan.mounts.is_some_and(Mounts::are_complete).then_some(namespaces::SCRATCH),
            scratch: if self.opens_files() { namespaces::SCRATCH } else { "/" },
            late_limits: if self.tier == Some(Tier::Rlimits) {
                rlimits::late_limits()
            } else {
                vec![]
            },
        }
    }

    /// Whether a filter is in force and workers share the uid of the service.
    fn shares_uid(&self) -> bool {
        self.workers.is_some_and(|workers| !workers.own_uid)
    }

    /// The largest number of processes and threads of the uid of a worker, for RLIMIT_NPROC.
    pub fn max_tasks(&self) -> u64 {
        self.max_tasks
    }

    /// The namespaces of a zygote and the steps that its process takes before it executes Python.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Creates the jail of one worker.
    ///
    /// # Errors
    /// When the scratch directory or the ruleset cannot be created, or every uid is in use.
    pub fn jail(&self) -> Result<Jail, SandboxError> {
        let uid = match &self.uids {
            Some(uids) => Some(uids.take().ok_or(SandboxError::NoUid)?),
            None => None,
        };
        let scratch = match self.plan.mounts {
            Some(mounts) if mounts.are_complete() => Scratch::Mount,
            _ if !self.opens_files() => Scratch::Nowhere,
            other => self.scratch.make(uid.as_ref().map(OwnUid::number), other.is_some())?,
        };
        let ruleset = match (self.landlock, &scratch) {
            (None, _) => None,
            (Some(abi), Scratch::Directory { host, .. }) => {
                Some(landlock::ruleset(abi, &self.readable, host)?)
            }
            (Some(abi), Scratch::Mount | Scratch::Nowhere) => Some(self.common_ruleset(abi)?),
        };
        let (sweeper, contamination) = (self.sweeper.clone(), self.contamination.clone());
        let reaches_processes = self.tier == Some(Tier::Rlimits);
        let bin = self.janitor.bin();
        Ok(Jail::new(scratch, ruleset, uid, sweeper, reaches_processes, contamination, bin))
    }

    /// Returns the ruleset of workers that mount their scratch directory or have none. A rule on the mount point would
    /// not apply to what is mounted there later, so the rule is on the directory around it, which is otherwise
    /// read-only. The same ruleset then serves all workers.
    fn common_ruleset(&self, abi: ::landlock::ABI) -> Result<OwnedFd, SandboxError> {
        let mut common = self.common_ruleset.lock().unwrap_or_else(PoisonError::into_inner);
        let ruleset = match &mut *common {
            Some(made) => made,
            None => common.insert(landlock::ruleset(abi, &self.readable, &self.scratch.home())?),
        };
        ruleset.try_clone().map_err(SandboxError::RulesetDescriptor)
    }

    /// Makes the scratch root anew if something has removed it. Returns whether it did.
    ///
    /// # Errors
    /// When a directory cannot be created.
    pub fn repair_scratch(&self) -> Result<bool, SandboxError> {
        let repaired = self.opens_files() && self.scratch.repair()?;
        if repaired {
            // Its rules are on the old directories.
            *self.common_ruleset.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.scratch_generation.fetch_add(1, Ordering::Relaxed);
        }
        Ok(repaired)
    }

    /// How often the scratch root was made anew. A zygote with a private root keeps the directories that were there when
    /// it started.
    pub fn scratch_generation(&self) -> u64 {
        self.scratch_generation.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
impl Sandbox {
    /// A sandbox without any mechanism, with scratch directories of its own.
    pub(crate) fn without_isolation() -> Sandbox {
        Sandbox {
            tier: None,
            layers: vec![],
            landlock: None,
            common_ruleset: Mutex::default(),
            uids: None,
            shares_files: false,
            readable: vec![],
            janitor: Janitor::start().unwrap(),
            scratch: ScratchRoot::create(7..10).unwrap(),
            scratch_generation: AtomicU64::new(0),
            workers: None,
            max_tasks: policy::MAX_THREADS,
            plan: Plan::default(),
            prctl: false,
            sweeper: None,
            contamination: Contamination::default(),
        }
    }
}
