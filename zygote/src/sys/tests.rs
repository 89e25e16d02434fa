use std::boxed::Box;
use std::vec::Vec;

use super::*;

/// Memory for the output of a worker, and a file that can be mapped there.
pub(crate) fn output() -> (Output, i32) {
    let (access, kind) = (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    let memory = with_numbers(number::MMAP, [0, OUTPUT_BYTES, access, kind, usize::MAX, 0]);
    let name = c"output".as_ptr() as usize;
    // SAFETY: the name ends with a NUL and is static.
    let file = unsafe { call(number::MEMFD_CREATE, [name, MFD_CLOEXEC, 0, 0, 0, 0]) };
    (Output(memory.unwrap() as *mut u8), file.unwrap() as i32)
}

#[test]
fn output_is_mapped_where_its_memory_was() {
    let (memory, descriptor) = output();
    // SAFETY: it has just been made, and nothing else closes it.
    let file = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(descriptor) };
    file.set_len(OUTPUT_BYTES as u64).unwrap();
    map_output(&memory, descriptor).unwrap();
    // SAFETY: the memory is mapped, and nothing else uses it.
    unsafe { memory.0.add(OUTPUT_BYTES - 1).write(7) };
    let mut last = [0];
    std::os::unix::fs::FileExt::read_at(&file, &mut last, OUTPUT_BYTES as u64 - 1).unwrap();
    assert_eq!(last, [7]);
    assert_eq!(map_output(&memory, -1), Err(Errno(9)));
}

#[test]
fn only_open_descriptors_are_closed_where_they_are_looked_at() {
    // No other test opens as many.
    let first = 700;
    let duplicated = [first, first + 1, first + POLLED as i32 - 1];
    let beyond = first + POLLED as i32;
    for number in duplicated.into_iter().chain([beyond]) {
        duplicate(0, number).unwrap();
    }
    let is_open = |number: i32| with_numbers(number::FCNTL, [number as usize, 1, 0]).is_ok();
    assert!(duplicated.into_iter().all(is_open));
    close_next(first);
    assert_eq!(duplicated.map(is_open), [false; 3]);
    assert!(is_open(beyond));
    close(beyond);
}

#[test]
fn the_numbers_are_those_of_the_kernel() {
    let ours = [
        (number::READ, libc::SYS_read),
        (number::CLOSE, libc::SYS_close),
        (number::MMAP, libc::SYS_mmap),
        (number::MUNMAP, libc::SYS_munmap),
        (number::BRK, libc::SYS_brk),
        (number::WRITE, libc::SYS_write),
        (number::MEMFD_CREATE, libc::SYS_memfd_create),
        (number::RT_SIGPROCMASK, libc::SYS_rt_sigprocmask),
        (number::GETPID, libc::SYS_getpid),
        (number::SENDTO, libc::SYS_sendto),
        (number::RECVMSG, libc::SYS_recvmsg),
        (number::WAIT4, libc::SYS_wait4),
        (number::FCNTL, libc::SYS_fcntl),
        (number::CHDIR, libc::SYS_chdir),
        (number::GETPPID, libc::SYS_getppid),
        (number::SETSID, libc::SYS_setsid),
        (number::SETGROUPS, libc::SYS_setgroups),
        (number::SETRESUID, libc::SYS_setresuid),
        (number::SETRESGID, libc::SYS_setresgid),
        (number::CAPSET, libc::SYS_capset),
        (number::PRCTL, libc::SYS_prctl),
        (number::MOUNT, libc::SYS_mount),
        (number::EXIT_GROUP, libc::SYS_exit_group),
        (number::OPENAT, libc::SYS_openat),
        (number::PPOLL, libc::SYS_ppoll),
        (number::UNSHARE, libc::SYS_unshare),
        (number::SIGNALFD4, libc::SYS_signalfd4),
        (number::DUP3, libc::SYS_dup3),
        (number::PRLIMIT64, libc::SYS_prlimit64),
        (number::CLOSE_RANGE, libc::SYS_close_range),
        (number::LANDLOCK_RESTRICT_SELF, libc::SYS_landlock_restrict_self),
    ];
    let different: Vec<_> =
        ours.into_iter().filter(|(ours, theirs)| *ours as i64 != *theirs).collect();
    assert_eq!(different, []);
}

#[test]
fn the_structures_have_the_sizes_of_the_kernel() {
    assert_eq!(size_of::<Message>(), size_of::<libc::msghdr>());
    assert_eq!(size_of::<Part>(), size_of::<libc::iovec>());
    assert_eq!(size_of::<PollFd>(), size_of::<libc::pollfd>());
    assert_eq!(size_of::<Program>(), size_of::<libc::sock_fprog>());
    assert_eq!(CONTROL_HEADER_BYTES, size_of::<libc::cmsghdr>());
    assert_eq!(18 * size_of::<u64>(), size_of::<libc::rusage>());
    assert_eq!(128, size_of::<libc::signalfd_siginfo>());
}

#[test]
fn moved_memory_keeps_its_content_and_nothing_changes_the_file() {
    use crate::heap::Arenas;
    const MADV_REMOVE: usize = 9;
    const EACCES: Errno = Errno(13);
    // SAFETY: all zero is the empty table.
    let mut arenas = Box::new(unsafe { core::mem::zeroed::<Arenas>() });
    // SAFETY: nothing else uses the table.
    let arena = unsafe { mainbox_allocate_arena(&raw mut *arenas, ARENA_BYTES) } as usize;
    assert_eq!(arenas.next_above(0), Some(arena));
    // SAFETY: these are the bytes of the arena, and nothing else uses them.
    let bytes = || unsafe { core::slice::from_raw_parts_mut(arena as *mut u8, ARENA_BYTES) };
    bytes().fill(7);
    let region = Region { start: arena, bytes: ARENA_BYTES, is_writable: true };
    // SAFETY: the region is the arena, which only this test uses.
    let file = unsafe { sealed_copy(&[region, region]) }.unwrap();
    // SAFETY: as above.
    unsafe { map_copy(file, ARENA_BYTES, region) }.unwrap();
    assert!(bytes().iter().all(|byte| *byte == 7));

    bytes().fill(8);
    // SAFETY: the kernel refuses it, so the memory stays.
    let removed = unsafe { call(libc::SYS_madvise as usize, [arena, 4096, MADV_REMOVE, 0, 0, 0]) };
    assert_eq!(removed, Err(EACCES));
    let mut first = [0];
    let read = [file as usize, first.as_mut_ptr() as usize, 1, 0, 0, 0];
    // SAFETY: the call writes one byte to `first`.
    assert_eq!(unsafe { call(libc::SYS_pread64 as usize, read) }, Ok(1));
    assert_eq!(first, [7]);
    close(file);
    // SAFETY: nothing uses the arena any more.
    unsafe { mainbox_free_arena(&raw mut *arenas, arena as *mut c_void, ARENA_BYTES) };
    assert_eq!(arenas.next_above(0), None);
}
