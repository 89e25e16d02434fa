//! Landlock: which files a worker may reach, as a ruleset made by the supervisor and entered by the worker.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    PathFdError, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

/// The versions of Landlock that add a restriction we use, newest first. Each is asked of the kernel whole
/// (`HardRequirement`): a ruleset is in force as built, or not at all.
pub const ABIS: [ABI; 6] = [ABI::V6, ABI::V5, ABI::V4, ABI::V3, ABI::V2, ABI::V1];

/// Why a ruleset could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LandlockError {
    /// The kernel refused the ruleset or a rule.
    #[error("Landlock ruleset: {0}")]
    Ruleset(#[from] RulesetError),
    /// A path of the policy could not be opened.
    #[error("Landlock rule: {0}")]
    Path(#[from] PathFdError),
    /// The kernel gave no ruleset.
    #[error("Landlock is not available")]
    Absent,
}

/// A ruleset that allows reading `readable`, reading and writing beneath `scratch`, and no network, no abstract
/// socket and no signal to the outside, as far as `abi` knows of them. Executing is allowed nowhere.
///
/// # Errors
/// The kernel's, or that of a path that cannot be opened.
pub fn ruleset(abi: ABI, readable: &[PathBuf], scratch: &Path) -> Result<OwnedFd, LandlockError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let writable = AccessFs::from_all(abi)
        & !(AccessFs::Execute
            | AccessFs::MakeChar
            | AccessFs::MakeBlock
            | AccessFs::MakeSock
            | AccessFs::MakeFifo
            | AccessFs::MakeSym
            | AccessFs::IoctlDev);
    let mut ruleset = empty_ruleset(abi)?;
    for path in readable {
        let access: BitFlags<AccessFs> =
            if path.is_dir() { read } else { AccessFs::ReadFile.into() };
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
    }
    ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new("/dev/null")?, AccessFs::WriteFile))?;
    ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(scratch)?, writable))?;
    Option::<OwnedFd>::from(ruleset).ok_or(LandlockError::Absent)
}

/// A ruleset of `abi` that allows nothing.
///
/// # Errors
/// The kernel's, when it does not know all of `abi`.
pub fn empty_ruleset(abi: ABI) -> Result<RulesetCreated, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    if abi >= ABI::V4 {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
    }
    if abi >= ABI::V6 {
        ruleset = ruleset.scope(Scope::from_all(abi))?;
    }
    ruleset.create()
}
