//! The seccomp filters, interpreted for every system call number of every architecture, and compared with the table that
//! they are made from.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use mainbox::config::choices::Policy;
use mainbox::sandbox::policy::{
    Allowed, LEGACY_SYSCALLS, OWN_PROCESS, READABLE, SYSCALLS, When, refused,
};
use mainbox::sandbox::seccomp::filters;
use seccompiler::{BpfProgram, sock_filter};

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

#[cfg(target_arch = "x86_64")]
const OWN_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OWN_ARCH: u32 = 0xc000_00b7;
/// i386 and 32-bit ARM.
const FOREIGN_ARCHS: [u32; 2] = [0x4000_0003, 0x4000_0028];
/// The bit that marks an x32 system call: `__X32_SYSCALL_BIT`.
const X32: u32 = 0x4000_0000;
/// Larger than the number of any system call.
const NUMBERS: u32 = 1024;

/// What the kernel passes to a filter: `struct seccomp_data`.
#[derive(Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

impl Call {
    fn new(number: u32, arguments: [u64; 6]) -> Call {
        Call { number, arch: OWN_ARCH, arguments }
    }

    /// Returns the 32-bit word at a byte offset.
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            8 | 12 => 0,
            _ => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
            }
        }
    }
}

/// Interprets the instructions of classic BPF that the filters use.
fn run(program: &[sock_filter], call: &Call) -> u32 {
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let instruction = &program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { instruction.jt } else { instruction.jf });
        match instruction.code {
            0x20 => accumulator = call.word(instruction.k),
            0x54 => accumulator &= instruction.k,
            0x05 => at += instruction.k as usize,
            0x15 => at += jump(accumulator == instruction.k),
            0x25 => at += jump(accumulator > instruction.k),
            0x35 => at += jump(accumulator >= instruction.k),
            0x06 => return instruction.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

/// Returns what the kernel does with all filters together: it follows the strictest verdict.
fn verdict(call: &Call, threads: bool) -> u32 {
    static FILTERS: LazyLock<[Vec<BpfProgram>; 2]> =
        LazyLock::new(|| [false, true].map(|threads| filters(threads).unwrap()));
    let verdicts = FILTERS[usize::from(threads)].iter().map(|program| run(program, call));
    verdicts.min_by_key(|verdict| (verdict & 0xffff_0000) as i32).unwrap()
}

fn table() -> BTreeMap<u32, &'static Allowed> {
    SYSCALLS.iter().chain(LEGACY_SYSCALLS).map(|row| (row.number as u32, row)).collect()
}

/// Arguments that satisfy the condition of a row.
fn satisfying(when: When) -> Vec<[u64; 6]> {
    let with = |argument: u8, value: u64| {
        let mut arguments = [0xdead_beef_dead_beef; 6];
        arguments[usize::from(argument)] = value;
        arguments
    };
    match when {
        When::Always => vec![[0xdead_beef_dead_beef; 6], [0; 6], [u64::MAX; 6]],
        When::Null(argument) => vec![with(argument, 0)],
        // The filter compares 32 bits, so the others do not matter.
        When::Among(argument, values) => {
            values.iter().map(|value| with(argument, u64::from(*value) | 0xabcd << 32)).collect()
        }
        When::Masked(argument, mask, values) => {
            values.iter().map(|value| with(argument, u64::from(*value | !mask))).collect()
        }
    }
}

/// Arguments that violate the condition of a row.
fn violating(when: When) -> Vec<[u64; 6]> {
    let with = |argument: u8, value: u64| {
        let mut arguments = [0; 6];
        arguments[usize::from(argument)] = value;
        arguments
    };
    match when {
        When::Always => vec![],
        When::Null(argument) => [1, 1 << 32, u64::MAX].map(|value| with(argument, value)).to_vec(),
        When::Among(argument, values) => (0..0x6000u32)
            .chain([u32::MAX, OWN_PROCESS - 1, OWN_PROCESS + 1])
            .filter(|value| !values.contains(value))
            .map(|value| with(argument, u64::from(value)))
            .collect(),
        When::Masked(argument, mask, values) => (0..32)
            .map(|bit| 1u32 << bit)
            .flat_map(|bit| values.iter().map(move |value| value ^ bit))
            .filter(|value| !values.contains(&(value & mask)))
            .map(|value| with(argument, u64::from(value)))
            .collect(),
    }
}

#[test]
fn listed_system_calls_are_allowed_only_under_their_condition() {
    for (number, row) in table() {
        if i64::from(number) == libc::SYS_clone3 {
            continue;
        }
        for arguments in satisfying(row.when) {
            let response = verdict(&Call::new(number, arguments), true);
            assert_eq!(response, ALLOW, "{row:?} {arguments:x?}");
        }
        for arguments in violating(row.when) {
            let response = verdict(&Call::new(number, arguments), true);
            assert_eq!(response, ERRNO | libc::EPERM as u32, "{row:?} {arguments:x?}");
        }
    }
}

#[test]
fn every_other_system_call_returns_eperm() {
    let table = table();
    let mut refused = 0;
    for number in
        (0..NUMBERS).chain([u32::MAX, 0x7fff_ffff]).filter(|number| !table.contains_key(number))
    {
        for arguments in [[0; 6], [u64::MAX; 6]] {
            let response = verdict(&Call::new(number, arguments), true);
            assert_eq!(response, ERRNO | libc::EPERM as u32, "{number}");
        }
        refused += 1;
    }
    assert_eq!(refused, NUMBERS as usize + 2 - table.len());
}

#[test]
fn clone3_returns_enosys_so_that_libraries_fall_back() {
    let response = verdict(&Call::new(libc::SYS_clone3 as u32, [0; 6]), true);
    assert_eq!(response, ERRNO | libc::ENOSYS as u32);
}

#[test]
fn x32_system_calls_return_eperm() {
    for number in 0..NUMBERS {
        let response = verdict(&Call::new(X32 | number, [0; 6]), true);
        assert_eq!(response, ERRNO | libc::EPERM as u32, "{number}");
    }
}

#[test]
fn foreign_architectures_are_killed() {
    for arch in FOREIGN_ARCHS {
        for number in 0..NUMBERS {
            let call = Call { number, arch, arguments: [0; 6] };
            assert_eq!(verdict(&call, true), KILL_PROCESS, "{arch:#x} {number}");
        }
    }
}

#[test]
fn without_threads_no_clone_is_allowed() {
    let thread = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;
    let call = Call::new(libc::SYS_clone as u32, [thread, 0, 0, 0, 0, 0]);
    assert_eq!(verdict(&call, true), ALLOW);
    assert_eq!(verdict(&call, false), ERRNO | libc::EPERM as u32);
}

#[test]
fn dangerous_system_calls_are_not_in_the_table() {
    let table = table();
    for number in [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_memfd_create,
        libc::SYS_io_uring_setup,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_chroot,
        libc::SYS_symlinkat,
        libc::SYS_linkat,
        libc::SYS_setuid,
        libc::SYS_shmget,
        libc::SYS_seccomp,
    ] {
        assert!(!table.contains_key(&(number as u32)), "{number}");
    }
}

#[test]
fn every_row_has_a_reason_and_is_listed_once() {
    let rows: Vec<&Allowed> = SYSCALLS.iter().chain(LEGACY_SYSCALLS).collect();
    assert!(rows.iter().all(|row| !row.reason.is_empty()));
    assert_eq!(rows.len(), table().len());
    assert!(READABLE.iter().all(|(path, reason)| path.starts_with('/') && !reason.is_empty()));
}

#[test]
fn strict_refuses_everything_that_standard_refuses() {
    let (off, standard, strict) =
        (refused(Policy::Off), refused(Policy::Standard), refused(Policy::Strict));
    assert!(off.modules.is_empty() && off.os_functions.is_empty() && off.builtins.is_empty());
    assert!(standard.modules.iter().all(|module| strict.modules.contains(module)));
    assert_eq!(standard.os_functions, strict.os_functions);
    assert!(strict.needs_return && !standard.needs_return);
}
