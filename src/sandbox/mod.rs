//! The sandbox: what a worker may do, which mechanisms enforce it here, and what each worker gets for itself.

pub mod jail;
pub mod landlock;
pub mod layer;
pub mod namespaces;
pub mod policy;
pub mod probe;
pub mod procfs;
pub mod rlimits;
pub mod scratch;
pub mod seccomp;
pub mod sweep;
pub mod sys;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde::Serialize;

use self::jail::{Contamination, Jail, OwnUid, Uids};
use self::layer::Layer;
use self::namespaces::{Mounts, Plan};
use self::probe::Probe;
use self::rlimits::Limit;
use self::scratch::{Scratch, ScratchError, ScratchRoot};
use self::sweep::Sweeper;
use crate::config::Config;
use crate::config::choices::{Platform, Tier};

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
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// What an earlier process left here.
    #[error("what was left here before could not be removed: {0}")]
    Leftovers(std::io::Error),
    /// The ruleset of a worker.
    #[error(transparent)]
    Landlock(#[from] landlock::LandlockError),
    /// The descriptor of the ruleset for one more worker.
    #[error("descriptor of a Landlock ruleset: {0}")]
    RulesetDescriptor(std::io::Error),
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
    /// That of every worker, where all find their scratch directory at the same place.
    common_ruleset: OnceLock<OwnedFd>,
    uids: Option<Uids>,
    readable: Vec<PathBuf>,
    scratch: ScratchRoot,
    filters: Vec<Vec<u8>>,
    plan: Plan,
    prctl: bool,
    sweeper: Option<Sweeper>,
    contamination: Contamination,
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
    /// Where a zygote can mount a file system for the time of its imports, if it can.
    pub home: Option<&'static str>,
    /// Limits to set when the script is read, its imports are done, and its first line is not run yet.
    pub late_limits: Vec<Limit>,
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
        let files = tier != Some(Tier::Rlimits);
        let sweeper = open.then(|| Sweeper::new(&probe.scratch, files));
        if !files {
            scratch::remove(probe.scratch.path()).map_err(SandboxError::Leftovers)?;
        }
        let on_lambda = config.platform == Platform::Lambda;
        if let (true, Some(Tier::Rlimits), Some(sweeper)) = (on_lambda, tier, &sweeper) {
            sweeper.clear().map_err(SandboxError::Leftovers)?;
        }
        let plan = probe.plan.filter(|_| tier == Some(Tier::Namespaces)).unwrap_or_default();
        Ok(Sandbox {
            tier,
            common_ruleset: OnceLock::new(),
            landlock: probe.landlock,
            uids: own_uids.then(Uids::new),
            layers: probe.layers,
            readable: probe.readable,
            scratch: probe.scratch,
            plan,
            filters: filters.iter().map(seccomp::to_bytes).collect(),
            prctl,
            sweeper,
            contamination: Contamination::default(),
        })
    }

    /// Whether a worker must be gone, with all that it left, before the next may run: where workers share a uid and
    /// nothing keeps their files apart.
    pub fn one_at_a_time(&self) -> bool {
        self.sweeper.is_some() && self.uids.is_none()
    }

    /// Whether a script can open files, so that it can import what its zygote has not.
    pub fn opens_files(&self) -> bool {
        self.tier != Some(Tier::Rlimits)
    }

    /// Whether what some worker left could not be removed, so that it could meet another.
    pub fn is_contaminated(&self) -> bool {
        self.contamination.any()
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
            home: (self.plan.mounts == Some(Mounts::Full)).then_some(namespaces::SCRATCH),
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
        let scratch = match self.plan.mounts {
            Some(Mounts::Full) => Scratch::Mount,
            _ if !self.opens_files() => Scratch::Nowhere,
            other => self.scratch.make(uid.as_ref().map(OwnUid::number), other.is_some())?,
        };
        let ruleset = match (self.landlock, &scratch) {
            (None, _) => None,
            (Some(abi), Scratch::Directory { host, .. }) => {
                Some(landlock::ruleset(abi, &self.readable, host)?)
            }
            (Some(abi), Scratch::Mount | Scratch::Nowhere) => {
                let common = self.common_ruleset(abi)?.try_clone();
                Some(common.map_err(SandboxError::RulesetDescriptor)?)
            }
        };
        Ok(Jail::new(scratch, ruleset, uid, self.sweeper.clone(), self.contamination.clone()))
    }

    /// A mount hides its mount point from Landlock, so the rule is on the directory around it, in which nothing else can
    /// be written, and holds for all workers.
    fn common_ruleset(&self, abi: ::landlock::ABI) -> Result<&OwnedFd, SandboxError> {
        if let Some(made) = self.common_ruleset.get() {
            return Ok(made);
        }
        let made = landlock::ruleset(abi, &self.readable, &self.scratch.home())?;
        Ok(self.common_ruleset.get_or_init(|| made))
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
            common_ruleset: OnceLock::new(),
            uids: None,
            readable: vec![],
            scratch: ScratchRoot::create().unwrap(),
            filters: vec![],
            plan: Plan::default(),
            prctl: false,
            sweeper: None,
            contamination: Contamination::default(),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
