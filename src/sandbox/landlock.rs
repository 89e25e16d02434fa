//! Landlock: the files that a worker may reach, as a ruleset that the supervisor builds and the worker enters.
//! See <https://docs.kernel.org/userspace-api/landlock.html>.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    PathFdError, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

/// The versions of Landlock that add a restriction in use here, newest first. The kernel must support a version in full
/// (`HardRequirement`), so that a ruleset is either enforced as built or an error.
pub const ABIS: [ABI; 6] = [ABI::V6, ABI::V5, ABI::V4, ABI::V3, ABI::V2, ABI::V1];

/// Why a ruleset could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LandlockError {
    /// The kernel refused the ruleset or a rule.
    #[error("cannot build a Landlock ruleset: {0}")]
    Ruleset(#[from] RulesetError),
    /// A path of the policy could not be opened.
    #[error("cannot add a path to a Landlock ruleset: {0}")]
    Path(#[from] PathFdError),
    /// The kernel does not support Landlock.
    #[error("the kernel does not offer Landlock")]
    Absent,
}

/// Builds a ruleset that allows reading `readable`, reading and writing beneath `scratch`, and writing to `/dev/null`.
/// As far as `abi` can restrict them, it denies TCP, abstract Unix sockets and signals to processes outside. It never
/// allows execution.
///
/// # Errors
/// When the kernel refuses the ruleset or a rule, or a path cannot be opened.
pub fn ruleset(abi: ABI, readable: &[PathBuf], scratch: &Path) -> Result<OwnedFd, LandlockError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Scripts need plain files and directories only: no devices, sockets, pipes or symbolic links, and no programs.
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
        // The kernel refuses a rule that grants directory rights on a file.
        let access: BitFlags<AccessFs> =
            if path.is_dir() { read } else { AccessFs::ReadFile.into() };
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
    }
    ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new("/dev/null")?, AccessFs::WriteFile))?;
    ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(scratch)?, writable))?;
    Option::<OwnedFd>::from(ruleset).ok_or(LandlockError::Absent)
}

/// Builds a ruleset that denies everything that `abi` can restrict.
///
/// # Errors
/// When the kernel does not support all of `abi`.
pub fn empty_ruleset(abi: ABI) -> Result<RulesetCreated, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    // Version 4 added TCP, version 6 added the scopes of abstract sockets and signals.
    if abi >= ABI::V4 {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
    }
    if abi >= ABI::V6 {
        ruleset = ruleset.scope(Scope::from_all(abi))?;
    }
    ruleset.create()
}
