//! Turns the table of allowed calls into BPF, with seccompiler.

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

/// The filters of a worker, in the order of their installation; the kernel takes the strictest answer of all.
///
/// 1. `clone3` answers ENOSYS, since its flags are in memory where no filter can read them, and ENOSYS is what makes
///    glibc fall back to `clone`.
/// 2. The allow-list, last, since it allows no further filter: what is not in the table answers EPERM (ERRNO, since
///    under gVisor KILL_PROCESS ends only a thread). A foreign architecture is killed, and x32 numbers are in no table.
///
/// Without `threads`, `clone` is left out: RLIMIT_NPROC counts by uid, so where workers share one, nothing can bound
/// the threads of each.
///
/// # Errors
/// Only when the table itself is wrong, which the tests would have shown.
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

/// A filter as the kernel reads it: 8 bytes an instruction, in the machine's byte order.
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
