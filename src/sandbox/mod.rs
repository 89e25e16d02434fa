//! The sandbox: what a worker may do, which mechanisms enforce it here, and what each worker gets for itself.

pub mod landlock;
pub mod namespaces;
pub mod policy;
pub mod probe;
pub mod rlimits;
pub mod scratch;
pub mod seccomp;
pub mod sweep;
pub mod sys;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use self::namespaces::Plan;
use self::probe::Probe;
use self::rlimits::Limit;
use self::scratch::{Scratch, ScratchRoot};
use self::sweep::{Before, Sweeper};
use crate::config::Config;

/// How strong the isolation is; the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Namespaces around the zygote, and all of `Seccomp`.
    Namespaces,
    /// A seccomp allow-list, Landlock and own uids where the host has them, and all of `Rlimits`.
    Seccomp,
    /// Resource limits that leave no descriptor, process or file to be had.
    Rlimits,
}

impl Tier {
    /// Every tier, the strongest first.
    pub const ALL: [Tier; 3] = [Tier::Namespaces, Tier::Seccomp, Tier::Rlimits];

    /// The tier's name in the configuration, in `/about` and in the header of an answer.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Namespaces => "namespaces",
            Tier::Seccomp => "seccomp",
            Tier::Rlimits => "rlimits",
        }
    }
}

/// A mechanism and whether this host gives it.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// What it is called.
    pub name: &'static str,
    /// Whether it works here.
    pub works: bool,
    /// Its version, or what the host answered.
    pub detail: String,
}

/// Why there is no sandbox, or none for a worker: one sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The host gives less than the configuration demands.
    #[error("MAINBOX_FLOOR is {floor}, but this host lacks the layer `{layer}`: {detail}")]
    BelowFloor {
        /// The demanded tier.
        floor: &'static str,
        /// The first layer that is missing for it.
        layer: &'static str,
        /// What the host answered.
        detail: String,
    },
    /// The filter could not be compiled.
    #[error("seccomp filter: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The directory for scratch directories, or a scratch directory in it.
    #[error("scratch directory {path}: {source}")]
    Scratch {
        /// Where it was to be.
        path: PathBuf,
        /// What the host answered.
        source: std::io::Error,
    },
    /// The ruleset of a worker.
    #[error(transparent)]
    Landlock(#[from] landlock::LandlockError),
    /// All uids are in use.
    #[error("no worker uid is free")]
    NoUid,
}

/// The sandbox of this process: what is in force, and what is handed out to workers.
pub struct Sandbox {
    /// The tier in force; `None` when there is none and the configuration serves all the same.
    pub tier: Option<Tier>,
    /// Every mechanism with its state.
    pub layers: Vec<Layer>,
    landlock: Option<::landlock::ABI>,
    uids: Option<Uids>,
    readable: Vec<PathBuf>,
    scratch: ScratchRoot,
    filters: Vec<Vec<u8>>,
    plan: Plan,
    prctl: bool,
    sweeper: Option<Sweeper>,
}

/// What a zygote is told once about the sandbox of its workers.
#[derive(Clone, Debug, Serialize)]
pub struct Lockdown {
    /// BPF programs in hexadecimal, in the order of their installation.
    pub filters: Vec<String>,
    /// The number in them that stands for the worker's own process id.
    pub own_process: u32,
    /// Whether no_new_privs is set and non-dumpable is asked for: both need prctl.
    pub prctl: bool,
    /// Whether workers enter a user namespace of their own.
    pub user_namespace: bool,
    /// Limits to set when the script is read, its imports are done, and its first line is not run yet.
    pub late_limits: Vec<Limit>,
}

/// What one worker gets for itself. Dropping it gives it back, so it must outlive the worker's process.
pub struct Jail {
    /// Its uid, where it has one of its own.
    pub uid: Option<u32>,
    /// Its working directory.
    pub scratch: Scratch,
    /// The Landlock ruleset that it enters, where the kernel has Landlock.
    pub ruleset: Option<OwnedFd>,
    before: Option<Before>,
    turn: Option<OwnedSemaphorePermit>,
    uids: Option<Uids>,
    sweeper: Option<Sweeper>,
}

impl Sandbox {
    /// Chooses the strongest sandbox that `probe` found to work and holds it against the configured floor.
    ///
    /// # Errors
    /// One sentence on what is missing.
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
        let filters = match tier {
            Some(Tier::Namespaces) => seccomp::filters(true)?,
            Some(Tier::Seccomp) => seccomp::filters(own_uids)?,
            Some(Tier::Rlimits) | None => vec![],
        };
        let prctl = probe.has(probe::PRCTL);
        // Elsewhere a worker can write nowhere but in its scratch directory, and make no IPC object.
        let open = matches!(tier, Some(Tier::Seccomp | Tier::Rlimits)) && probe.landlock.is_none();
        let sweeper = open.then(|| Sweeper::new(&probe.scratch));
        let plan = probe.plan.filter(|_| tier == Some(Tier::Namespaces)).unwrap_or_default();
        Ok(Sandbox {
            tier,
            landlock: probe.landlock,
            uids: own_uids.then(Uids::new),
            layers: probe.layers,
            readable: probe.readable,
            scratch: probe.scratch,
            plan,
            filters: filters.iter().map(seccomp::to_bytes).collect(),
            prctl,
            sweeper,
        })
    }

    /// Whether a worker must be gone, with all that it left, before the next may run: where workers share a uid and
    /// nothing keeps their files apart.
    pub fn one_at_a_time(&self) -> bool {
        self.sweeper.is_some() && self.uids.is_none()
    }

    /// Whether a worker can read and write only the files that the policy names. Without Landlock or a root of its own,
    /// a worker with its own uid still reads what everybody may read, and writes where everybody may write until it is
    /// swept up after.
    pub fn confines_files(&self) -> bool {
        matches!(self.tier, Some(Tier::Namespaces | Tier::Rlimits)) || self.landlock.is_some()
    }

    /// The tier's name, or `none`.
    pub fn tier_name(&self) -> &'static str {
        self.tier.map_or("none", Tier::name)
    }

    /// What a zygote is told once.
    pub fn lockdown(&self) -> Lockdown {
        Lockdown {
            filters: self.filters.iter().map(|bytes| hexadecimal(bytes)).collect(),
            own_process: policy::OWN_PROCESS,
            prctl: self.prctl,
            user_namespace: self.plan.has_user_namespace(),
            late_limits: if self.tier == Some(Tier::Rlimits) {
                rlimits::late_limits()
            } else {
                vec![]
            },
        }
    }

    /// What a zygote does before it becomes Python.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What one worker gets for itself.
    ///
    /// # Errors
    /// When the scratch directory or the ruleset cannot be made, or every uid is in use.
    pub fn jail(&self) -> Result<Jail, SandboxError> {
        let uid = match &self.uids {
            Some(uids) => Some(uids.take().ok_or(SandboxError::NoUid)?),
            None => None,
        };
        // From here on the uid goes back by itself.
        let mut jail = Jail {
            uid,
            scratch: Scratch::Mount,
            ruleset: None,
            before: None,
            turn: None,
            uids: self.uids.clone(),
            sweeper: self.sweeper.clone(),
        };
        if self.tier != Some(Tier::Namespaces) {
            jail.scratch = self.scratch.make(uid)?;
        }
        if let Some(abi) = self.landlock {
            // A mount hides its mount point from Landlock, so the rule is on the directory around it, in which nothing
            // else can be written.
            let home = self.scratch.home();
            let writable = match &jail.scratch {
                Scratch::Directory(path) => path,
                Scratch::Mount => &home,
            };
            jail.ruleset = Some(landlock::ruleset(abi, &self.readable, writable)?);
        }
        Ok(jail)
    }
}

impl Jail {
    /// A script is about to run in it. The jail keeps `turn`, if it is given one, until the worker has left no trace.
    pub fn occupy(&mut self, turn: Option<OwnedSemaphorePermit>) {
        self.before = self.sweeper.as_ref().map(|sweeper| sweeper.look(self.uid));
        self.turn = turn;
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        if let (Some(uids), Some(uid)) = (&self.uids, self.uid) {
            uids.give_back(uid);
        }
        if let (Some(sweeper), Some(before)) = (&self.sweeper, &self.before) {
            sweeper.sweep(before);
        }
    }
}

/// The uids that no live worker has; the one that rested longest goes out first.
#[derive(Clone)]
struct Uids(Arc<Mutex<VecDeque<u32>>>);

impl Uids {
    fn new() -> Uids {
        Uids(Arc::new(Mutex::new(policy::WORKER_UIDS.collect())))
    }

    fn take(&self) -> Option<u32> {
        self.0.lock().expect("BUG: no code panics under this lock").pop_front()
    }

    fn give_back(&self, uid: u32) {
        self.0.lock().expect("BUG: no code panics under this lock").push_back(uid);
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
