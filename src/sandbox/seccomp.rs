//! Compiles the table of allowed system calls into seccomp filters. See
//! <https://docs.kernel.org/userspace-api/seccomp_filter.html>.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::policy::{Allowed, LEGACY_SYSCALLS, SYSCALLS, When};

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// Compiles the filters of a worker, in the order in which it installs them. The kernel runs all of them and takes the
/// strictest result.
///
/// 1. `clone3` fails with ENOSYS, which makes glibc fall back to `clone`. The flags of `clone3` are in memory that a
///    filter cannot read.
/// 2. The allow-list. It is last, since it does not allow installing another filter. A system call that is not in the
///    table fails with EPERM rather than killing the process, since under gVisor SECCOMP_RET_KILL_PROCESS ends only the
///    thread. A call of another architecture kills the process. The numbers of the x32 ABI are not in the table.
///
/// Without `threads`, `clone` is not allowed: RLIMIT_NPROC counts per uid, so it cannot limit the threads of one worker
/// if workers share a uid.
///
/// # Errors
/// When the table is invalid. The tests compile it, so this does not happen in a release.
pub fn filters(threads: bool) -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in SYSCALLS.iter().chain(LEGACY_SYSCALLS) {
        if threads || row.number != libc::SYS_clone {
            rules.insert(row.number, rules_of(row)?);
        }
    }
    let allow_list = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        ARCH,
    )?;
    let no_clone3 = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        ARCH,
    )?;
    Ok(vec![no_clone3.try_into()?, allow_list.try_into()?])
}

/// The conditions of a row of the table. The call is allowed if any of them matches, or if there are none.
fn rules_of(row: &Allowed) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let rule = |argument, length, operator, value: u64| {
        let condition = SeccompCondition::new(argument, length, operator, value)?;
        Ok(SeccompRule::new(vec![condition])?)
    };
    match row.when {
        When::Always => Ok(vec![]),
        When::Null(argument) => Ok(vec![rule(argument, Qword, Eq, 0)?]),
        When::Among(argument, values) => {
            values.iter().map(|value| rule(argument, Dword, Eq, u64::from(*value))).collect()
        }
        When::Masked(argument, mask, values) => values
            .iter()
            .map(|value| rule(argument, Dword, MaskedEq(u64::from(mask)), u64::from(*value)))
            .collect(),
    }
}

/// A filter in the format of the kernel: 8 bytes for each instruction (`struct sock_filter`), in native byte order.
pub fn to_bytes(program: &BpfProgram) -> Vec<u8> {
    program
        .iter()
        .flat_map(|instruction| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&instruction.code.to_ne_bytes());
            bytes[2] = instruction.jt;
            bytes[3] = instruction.jf;
            bytes[4..].copy_from_slice(&instruction.k.to_ne_bytes());
            bytes
        })
        .collect()
}
