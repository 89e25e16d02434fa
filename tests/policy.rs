//! The seccomp filter, interpreted for every system call number of every architecture, and compared with the table that it
//! is made from and with what single calls must get.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use libc::sock_filter;
use mainbox::config::choices::Policy;
use mainbox::sandbox::policy::{OWN_PROCESS, READABLE, refused};
use mainbox::sandbox::seccomp::filter;
use mainbox::sandbox::system_calls::{
    ANSWERS, Allowed, LEGACY_CALLS, NEWEST, SYSTEM_CALLS, When, Workers,
};

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = ERRNO | libc::ENOSYS as u32;

#[cfg(target_arch = "x86_64")]
const OWN_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OWN_ARCH: u32 = 0xc000_00b7;
/// i386 and 32-bit ARM.
const FOREIGN_ARCHS: [u32; 2] = [0x4000_0003, 0x4000_0028];
/// The bit that marks an x32 system call: `__X32_SYSCALL_BIT`.
const X32: u32 = 0x4000_0000;
/// Workers with the uid of the service: those that own libraries, and those that do not.
const OWNERS: Workers = Workers { own_uid: false, owners: true, counted: false };
const NOT_OWNERS: Workers = Workers { owners: false, ..OWNERS };
const COUNTED: Workers = Workers { counted: true, ..NOT_OWNERS };
const COUNTED_OWNERS: Workers = Workers { owners: true, ..COUNTED };
const CLASSES: [Workers; 5] = [OWNERS, NOT_OWNERS, COUNTED, COUNTED_OWNERS, Workers::APART];

/// What the kernel passes to a filter: `struct seccomp_data`.
#[derive(Clone, Copy, Debug)]
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

/// Interprets the instructions of classic BPF that the filter uses, as the kernel does.
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
            0x35 => at += jump(accumulator >= instruction.k),
            0x06 => return instruction.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn rows() -> impl Iterator<Item = &'static Allowed> {
    SYSTEM_CALLS.iter().chain(LEGACY_CALLS)
}

/// Returns whether all conditions hold, by their definition.
fn hold(conditions: &[When], arguments: &[u64; 6]) -> bool {
    let low = |argument: u8| arguments[usize::from(argument)] as u32;
    conditions.iter().all(|condition| match *condition {
        When::Among(argument, values) => values.contains(&low(argument)),
        When::Masked(argument, mask, values) => values.contains(&(low(argument) & mask)),
        When::Within(argument, bits) => low(argument) & !bits == 0,
        When::Null(argument) => arguments[usize::from(argument)] == 0,
    })
}

/// What a call must get, by the table.
fn expected(call: &Call, workers: Workers) -> u32 {
    if call.number > NEWEST {
        return ENOSYS;
    }
    let of_call = |number: i64| number == i64::from(call.number);
    if rows().any(|row| {
        of_call(row.number) && row.workers.includes(workers) && hold(row.when, &call.arguments)
    }) {
        return ALLOW;
    }
    let answer =
        ANSWERS.iter().find(|answer| of_call(answer.number) && hold(answer.when, &call.arguments));
    answer.map_or(EPERM, |answer| ERRNO | answer.errno as u32)
}

/// Arguments around the conditions of a call: each value in them, with each bit changed, alone and beside values that
/// satisfy the other conditions.
fn arguments_around(conditions: &[When]) -> Vec<[u64; 6]> {
    let mut bases = vec![[0u64; 6], [u64::MAX; 6], [0xdead_beef_dead_beef; 6]];
    let mut satisfying = [0u64; 6];
    for condition in conditions {
        match *condition {
            When::Among(argument, values) | When::Masked(argument, _, values) => {
                satisfying[usize::from(argument)] = u64::from(values[0]) | 0xabcd << 32;
            }
            When::Within(argument, bits) => satisfying[usize::from(argument)] = u64::from(bits),
            When::Null(_) => {}
        }
    }
    bases.push(satisfying);
    let mut all = bases.clone();
    for condition in conditions {
        let (argument, values): (u8, Vec<u64>) = match *condition {
            When::Among(argument, values) => {
                (argument, values.iter().map(|value| u64::from(*value)).collect())
            }
            When::Masked(argument, mask, values) => {
                let with = |value: &u32| [u64::from(*value), u64::from(*value | !mask)];
                (argument, values.iter().flat_map(with).collect())
            }
            When::Within(argument, bits) => (argument, vec![0, u64::from(bits)]),
            When::Null(argument) => (argument, vec![0]),
        };
        let near = values.iter().flat_map(|value| {
            (0..64).map(move |bit| value ^ (1 << bit)).chain([*value, value.wrapping_sub(1)])
        });
        for value in near.chain(0..0x200) {
            for base in &bases {
                let mut arguments = *base;
                arguments[usize::from(argument)] = value;
                all.push(arguments);
            }
        }
    }
    all
}

#[test]
fn every_call_gets_what_the_table_says() {
    let mut allowed = 0;
    for workers in CLASSES {
        let filter = filter(workers);
        assert!(filter.len() <= 4096, "{} instructions", filter.len());
        let numbers = (0..=NEWEST + 600).chain([X32 - 1, X32, X32 | 1, 0x7fff_ffff, u32::MAX]);
        for number in numbers {
            let of_call = |other: i64| other == i64::from(number);
            let conditions: Vec<When> = rows()
                .filter(|row| of_call(row.number))
                .flat_map(|row| row.when)
                .chain(ANSWERS.iter().filter(|row| of_call(row.number)).flat_map(|row| row.when))
                .copied()
                .collect();
            for arguments in arguments_around(&conditions) {
                let call = Call::new(number, arguments);
                let verdict = run(&filter, &call);
                assert_eq!(verdict, expected(&call, workers), "{call:x?} {workers:?}");
                allowed += u32::from(verdict == ALLOW);
            }
        }
    }
    assert!(allowed > 1000, "{allowed}");
}

#[test]
fn each_number_is_found_with_few_comparisons() {
    let filter = filter(Workers::APART);
    // As many instructions as `run` executes, until the first one that is not part of the search.
    let steps = |number: u32| {
        let (mut at, mut steps) = (4, 0);
        while matches!(filter[at].code, 0x35 | 0x05) {
            let step = &filter[at];
            let jump = if number >= step.k { step.jt } else { step.jf };
            at += 1 + if step.code == 0x05 { step.k as usize } else { usize::from(jump) };
            steps += 1;
        }
        steps
    };
    assert!((0..=NEWEST).map(steps).max().unwrap() <= 12);
}

/// A call by its number, its arguments, and what it gets.
type Case = (libc::c_long, [u64; 6], u32);

#[track_caller]
fn get(workers: Workers, cases: &[Case]) {
    let filter = filter(workers);
    for (number, arguments, verdict) in cases {
        let call = Call::new(*number as u32, *arguments);
        assert_eq!(run(&filter, &call), *verdict, "{call:x?}");
    }
}

fn with(argument: usize, value: u64) -> [u64; 6] {
    let mut arguments = [0; 6];
    arguments[argument] = value;
    arguments
}

#[test]
fn locks_wait_and_wake_but_inherit_no_priority() {
    let (private, realtime) = (128, 256);
    for operation in 0..14u64 {
        let verdict = match operation {
            0 | 1 | 3 | 4 | 5 | 9 | 10 => ALLOW,
            // FD; LOCK_PI, UNLOCK_PI, TRYLOCK_PI; WAIT_REQUEUE_PI, CMP_REQUEUE_PI, LOCK_PI2
            2 | 6 | 7 | 8 | 11 | 12 | 13 => EPERM,
            _ => unreachable!(),
        };
        for flags in [0, private, realtime, private | realtime] {
            get(Workers::APART, &[(libc::SYS_futex, with(1, operation | flags), verdict)]);
        }
    }
    let futex2 = [libc::SYS_futex_waitv, 454, 455, 456].map(|number| (number, [0; 6], EPERM));
    get(Workers::APART, &futex2);
}

#[test]
fn there_is_no_epoll() {
    let mut calls = vec![libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait];
    calls.push(libc::SYS_epoll_pwait2);
    #[cfg(target_arch = "x86_64")]
    calls.extend([libc::SYS_epoll_create, libc::SYS_epoll_wait]);
    for number in calls {
        get(Workers::APART, &[(number, [0; 6], EPERM)]);
    }
}

#[test]
fn socket_pairs_are_streams_without_out_of_band_data() {
    let pair = |domain, kind, protocol| [domain, kind, protocol, 1, 0, 0];
    let (unix, stream, datagram, packets) = (1, 1, 2, 5);
    let (nonblocking, cloexec) = (0o4000, 0o2_000_000);
    let option = |level, name| [3, level, name, 1, 1, 0];
    get(
        Workers::APART,
        &[
            (libc::SYS_socketpair, pair(unix, stream, 0), ALLOW),
            (libc::SYS_socketpair, pair(unix, stream | nonblocking | cloexec, 0), ALLOW),
            (libc::SYS_socketpair, pair(unix, datagram, 0), EPERM),
            (libc::SYS_socketpair, pair(unix, packets, 0), EPERM),
            (libc::SYS_socketpair, pair(unix, stream, 1), EPERM),
            (libc::SYS_socketpair, pair(2, stream, 0), EPERM),
            (libc::SYS_sendto, [3, 1, 1, 0, 0, 0], ALLOW),
            (libc::SYS_sendto, [3, 1, 1, 0x4040, 0, 0], ALLOW),
            (libc::SYS_sendto, [3, 1, 1, 1, 0, 0], EPERM), // MSG_OOB
            (libc::SYS_sendto, [3, 1, 1, 0x2000_0000, 0, 0], EPERM), // MSG_FASTOPEN
            (libc::SYS_sendto, [3, 1, 1, 0, 1 << 32, 16], EPERM),
            (libc::SYS_recvfrom, [3, 1, 1, 0x142, 0, 0], ALLOW),
            (libc::SYS_recvfrom, [3, 1, 1, 1, 0, 0], EPERM), // MSG_OOB
            (libc::SYS_recvfrom, [3, 1, 1, 0x2000, 0, 0], EPERM), // MSG_ERRQUEUE
            (libc::SYS_getsockopt, option(1, 3), ALLOW),
            (libc::SYS_getsockopt, option(1, 4), ALLOW),
            (libc::SYS_getsockopt, option(1, 17), EPERM), // SO_PEERCRED
            (libc::SYS_getsockopt, option(1, 77), EPERM), // SO_PEERPIDFD
            (libc::SYS_getsockopt, option(6, 3), EPERM),  // TCP
            (libc::SYS_sendfile, [1, 3, 0, 100, 0, 0], ERRNO | libc::ENOTSOCK as u32),
            (libc::SYS_sendmsg, [0; 6], EPERM),
            (libc::SYS_splice, [0; 6], EPERM),
        ],
    );
}

#[test]
fn clocks_are_those_of_the_system_and_of_the_own_process() {
    let of_process = |pid: i64| (!pid << 3 | 2) as u64;
    let of_thread = |tid: i64| (!tid << 3 | 6) as u64;
    let of_descriptor = |fd: i64| (!fd << 3 | 3) as u64;
    for number in [libc::SYS_clock_gettime, libc::SYS_clock_getres] {
        for clock in (0..=9).chain([11, of_thread(77)]) {
            get(Workers::APART, &[(number, with(0, clock), ALLOW)]);
        }
        for clock in [10, 12, 16, of_process(1), of_process(77), of_descriptor(3), of_descriptor(7)]
        {
            get(Workers::APART, &[(number, with(0, clock), EPERM)]);
        }
    }
    get(
        Workers::APART,
        &[
            (libc::SYS_clock_nanosleep, with(0, 1), ALLOW),
            (libc::SYS_clock_nanosleep, with(0, of_process(1)), EPERM),
            (libc::SYS_sched_getaffinity, with(0, OWN_PROCESS.into()), ALLOW),
            (libc::SYS_sched_getaffinity, with(0, 1), EPERM),
        ],
    );
}

#[test]
fn memory_is_mapped_and_advised_as_malloc_does() {
    let map = |protection, flags| [0, 4096, protection, flags, u64::MAX, 0];
    let mut cases: Vec<Case> = vec![
        (libc::SYS_mmap, map(3, 0x22), ALLOW),
        (libc::SYS_mmap, map(3, 0x2_4022), ALLOW), // MAP_STACK | MAP_NORESERVE
        (libc::SYS_mmap, map(5, 0x812), ALLOW),    // the loader: MAP_DENYWRITE | MAP_FIXED
        (libc::SYS_mmap, map(7, 0x22), EPERM),
        (libc::SYS_mmap, map(3, 0x2022), EPERM), // MAP_LOCKED
        (libc::SYS_mmap, map(3, 0x4_0022), EPERM), // MAP_HUGETLB
        (libc::SYS_mmap, map(3, 0x28), EPERM),   // MAP_DROPPABLE
        (libc::SYS_mmap, map(3, 0x10_0022), ALLOW), // MAP_FIXED_NOREPLACE
        (libc::SYS_mremap, with(3, 0), ALLOW),
        (libc::SYS_mremap, with(3, 1), ALLOW),
        (libc::SYS_mremap, with(3, 3), EPERM), // MREMAP_FIXED
        (libc::SYS_mremap, with(3, 5), EPERM), // MREMAP_DONTUNMAP
        (libc::SYS_mlock, [0; 6], EPERM),
        (libc::SYS_mbind, [0; 6], EPERM),
    ];
    for advice in 0..128 {
        let used = matches!(advice, 0..=4 | 8 | 14..=17 | 102 | 103);
        cases.push((libc::SYS_madvise, with(2, advice), if used { ALLOW } else { EPERM }));
    }
    get(Workers::APART, &cases);
}

#[test]
fn files_get_no_set_user_id_are_not_exchanged_and_keep_their_blocks() {
    let (set_user, set_group, sticky) = (0o4755, 0o2755, 0o1777);
    let (create, temporary) = (0o101, (libc::O_TMPFILE | libc::O_RDWR) as u64);
    let mut cases: Vec<Case> = vec![
        (libc::SYS_openat, [0, 1, create, 0o666, 0, 0], ALLOW),
        (libc::SYS_openat, [0, 1, create, set_user, 0, 0], EPERM),
        (libc::SYS_openat, [0, 1, temporary, set_group, 0, 0], EPERM),
        (libc::SYS_openat, [0, 1, 0, u64::MAX, 0, 0], ALLOW), // there is no mode without O_CREAT
        (libc::SYS_renameat2, with(4, 0), ALLOW),
        (libc::SYS_renameat2, with(4, 1), ALLOW),
        (libc::SYS_renameat2, with(4, 2), EPERM),
        (libc::SYS_renameat2, with(4, 4), EPERM),
        (libc::SYS_fallocate, with(1, 0), ALLOW),
        (libc::SYS_fallocate, with(1, 1), EPERM),
        (libc::SYS_fallocate, with(1, 3), EPERM),
        (libc::SYS_close_range, with(2, 0), ALLOW),
        (libc::SYS_close_range, with(2, 2), EPERM),
        (libc::SYS_pipe2, with(1, 0o2_004_000), ALLOW),
        (libc::SYS_pipe2, with(1, 0o200), EPERM), // O_NOTIFICATION_PIPE
        (libc::SYS_ioctl, with(1, 0x5413), ALLOW),
        (libc::SYS_ioctl, with(1, 0x5412), EPERM), // TIOCSTI
        (libc::SYS_ioctl, with(1, 0x4004_9409), ERRNO | libc::EOPNOTSUPP as u32),
        (libc::SYS_mknodat, [0; 6], EPERM),
        (libc::SYS_fsetxattr, [0; 6], EPERM),
        (452, [0; 6], ENOSYS),
    ];
    for (number, argument) in
        [(libc::SYS_fchmod, 1), (libc::SYS_fchmodat, 2), (libc::SYS_mkdirat, 2)]
    {
        cases.push((number, with(argument, sticky), ALLOW));
        cases.push((number, with(argument, set_user), EPERM));
        cases.push((number, with(argument, set_group), EPERM));
    }
    get(Workers::APART, &cases);
}

#[test]
fn a_worker_with_the_uid_of_the_service_changes_files_by_descriptor_and_only_if_libraries_are_not_its_own()
 {
    let (by_path, by_descriptor) = ([9, 0x7000, 0o600, 0, 0, 0], [3, 0, 0, 0, 0, 0]);
    for (workers, paths, descriptors) in
        [(Workers::APART, ALLOW, ALLOW), (NOT_OWNERS, EPERM, ALLOW), (OWNERS, EPERM, EPERM)]
    {
        get(
            workers,
            &[
                (libc::SYS_fchmodat, by_path, paths),
                (libc::SYS_utimensat, by_path, paths),
                (libc::SYS_truncate, by_path, paths),
                (libc::SYS_utimensat, by_descriptor, descriptors),
                (libc::SYS_fchmod, by_descriptor, descriptors),
                (libc::SYS_ftruncate, by_descriptor, ALLOW),
            ],
        );
        #[cfg(target_arch = "x86_64")]
        get(workers, &[(libc::SYS_chmod, [0x7000, 0o600, 0, 0, 0, 0], paths)]);
    }
}

#[test]
fn barriers_interrupt_no_other_process() {
    for command in 0..=512 {
        let verdict = if matches!(command, 0 | 8 | 16) { ALLOW } else { EPERM };
        get(Workers::APART, &[(libc::SYS_membarrier, with(0, command), verdict)]);
    }
}

#[test]
fn only_workers_whose_threads_are_limited_start_threads() {
    let shared = libc::CLONE_FILES | libc::CLONE_FS;
    let own_table = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;
    let thread = own_table | shared as u64;
    get(Workers::APART, &[(libc::SYS_clone, with(0, own_table), EPERM)]);
    let call = (libc::SYS_clone, with(0, thread));
    get(Workers::APART, &[(call.0, call.1, ALLOW), (call.0, with(0, 17), EPERM)]);
    get(COUNTED, &[(call.0, call.1, ALLOW), (call.0, with(0, 17), EPERM)]);
    get(NOT_OWNERS, &[(call.0, call.1, EPERM)]);
    get(OWNERS, &[(call.0, call.1, EPERM)]);
    get(Workers::APART, &[(libc::SYS_clone3, [0; 6], ENOSYS)]);
}

/// Python cannot start without these. The other tests compare the filter with the table, so they would not notice that a
/// row is missing.
#[test]
fn the_system_calls_of_every_script_are_allowed() {
    for number in [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_openat,
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_lseek,
        libc::SYS_munmap,
        libc::SYS_brk,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_futex,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ] {
        for workers in CLASSES {
            get(workers, &[(number, [0; 6], ALLOW)]);
        }
    }
}

#[test]
fn numbers_that_are_newer_than_the_table_return_enosys() {
    for number in [NEWEST + 1, NEWEST + 100, X32, X32 | 59, u32::MAX] {
        get(Workers::APART, &[(libc::c_long::from(number), [0; 6], ENOSYS)]);
    }
    assert!(rows().all(|row| row.number <= libc::c_long::from(NEWEST)));
}

#[test]
fn foreign_architectures_are_killed() {
    let filter = filter(Workers::APART);
    for arch in FOREIGN_ARCHS {
        for number in 0..1024 {
            let call = Call { number, arch, arguments: [0; 6] };
            assert_eq!(run(&filter, &call), KILL_PROCESS, "{arch:#x} {number}");
        }
    }
}

#[test]
fn dangerous_system_calls_are_not_in_the_table() {
    let numbers: BTreeSet<libc::c_long> = rows().map(|row| row.number).collect();
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
        libc::SYS_timer_create,
        libc::SYS_rt_sigqueueinfo,
    ] {
        assert!(!numbers.contains(&number), "{number}");
    }
}

#[test]
fn every_row_has_a_reason_and_its_alternatives_are_beside_it() {
    let rows: Vec<&Allowed> = rows().collect();
    assert!(rows.iter().all(|row| !row.reason.is_empty()));
    assert!(ANSWERS.iter().all(|answer| !answer.reason.is_empty()));
    let mut numbers: Vec<_> = rows.iter().map(|row| row.number).collect();
    numbers.dedup();
    let different: BTreeSet<_> = numbers.iter().collect();
    assert_eq!(numbers.len(), different.len());
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
