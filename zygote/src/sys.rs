//! System calls, and all `unsafe` code of this crate.
//!
//! The calls are made directly, since a C library cannot be linked into a process that has its own.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ffi::{CStr, c_int, c_void};
use core::ptr;

use crate::heap::{ARENA_BYTES, Arenas, ProgramHeader, Region, Regions};
use crate::json;
use crate::messages::{Exit, Instruction, OUTPUT_BYTES, Order, Policy};
use crate::numbers::*;
use crate::serve::{End, Fork, Hooks, Memory, report_heap, serve};

/// The number of the first descriptor that is not closed where close_range(2) does not work. A zygote opens few.
const MOST_DESCRIPTORS: i32 = 4096;
/// How many descriptors are looked at in one system call there.
const POLLED: usize = 256;
/// The first of the high descriptors. Those of a worker and of its zygote are below.
const HIGH: usize = 100;

/// The reason why a system call failed: <https://man7.org/linux/man-pages/man3/errno.3.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Runs the loop of a zygote. Python calls it through `ctypes`, holding the GIL. Returns 0 when no order came for
/// `quiet_ms` milliseconds, 1 in a worker, 2 in a worker that is to warm up, 3 when the supervisor is gone, and otherwise
/// a negative errno.
///
/// # Safety
/// `memory` points to as many bytes as a [`Memory`] has, aligned like one and all zero at first; `policy` to
/// `policy_bytes` bytes. Nothing else uses either during the call. `fork` is fork(3), `errno` is __errno_location(3), and
/// the three after it are all null or the functions of the C API of Python that [`Hooks`] names. `output` points to
/// [`OUTPUT_BYTES`] of private memory in whole pages, to which there is no reference. `heap` is null, or describes the
/// memory of this process. No other thread runs.
#[cfg_attr(freestanding, unsafe(no_mangle))]
pub unsafe extern "C" fn mainbox_zygote(
    memory: *mut Memory,
    policy: *mut u8,
    policy_bytes: usize,
    fork: extern "C" fn() -> c_int,
    errno: extern "C" fn() -> *const c_int,
    before: Option<extern "C" fn()>,
    after_in_parent: Option<extern "C" fn()>,
    after_in_child: Option<extern "C" fn()>,
    output: *mut u8,
    heap: *const Heap,
    quiet_ms: c_int,
) -> c_int {
    if !memory.is_aligned() {
        return -EINVAL.0;
    }
    // SAFETY: the caller promises both, and any bytes are a valid `Memory`: it has no type with invalid values but the
    // `bool` of a child, which only the table itself writes.
    let (memory, policy) =
        unsafe { (&mut *memory, core::slice::from_raw_parts_mut(policy, policy_bytes)) };
    let hooks = match (before, after_in_parent, after_in_child) {
        (Some(before), Some(after_in_parent), Some(after_in_child)) => {
            Some(Hooks { before, after_in_parent, after_in_child })
        }
        _ => None,
    };
    let Some(mut policy) = Policy::decode(policy) else { return -EINVAL.0 };
    // SAFETY: by the contract of the entry, it is null or describes this process.
    if let Some(heap) = unsafe { heap.as_ref() } {
        // SAFETY: by the contract of the entry, no other thread runs.
        match unsafe { move_heap(heap) } {
            // Cannot be reported only if the supervisor is gone, which the loop finds out.
            Ok((bytes, result)) => drop(report_heap(bytes, result)),
            Err(Errno(errno)) => return -errno,
        }
    }
    let output = Output(output);
    match serve(memory, &mut policy, &output, Fork { fork, errno, hooks }, quiet_ms) {
        Ok(End::Quiet) => 0,
        Ok(End::Worker { warm_up: false }) => 1,
        Ok(End::Worker { warm_up: true }) => 2,
        Ok(End::Gone) => 3,
        Err(Errno(errno)) => -errno,
    }
}

/// Forks. Returns the process id of the child, or zero in the child.
pub(crate) fn fork(fork: Fork) -> Result<i32, Errno> {
    match (fork.fork)() {
        // SAFETY: `errno` is __errno_location(3) by the contract of the entry, and returns the address of an integer
        // that lives as long as the thread.
        -1 => Err(Errno(unsafe { *(fork.errno)() })),
        pid => Ok(pid),
    }
}

/// Where the memory for the output of a worker is. Only the entry makes one.
#[derive(Debug)]
pub struct Output(*mut u8);

/// Maps the memory for the output of a worker: the beginning of a file, which it shares with whoever has it open.
pub(crate) fn map_output(output: &Output, file: i32) -> Result<(), Errno> {
    let (access, kind) = (PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED);
    // SAFETY: by the contract of the entry, this is memory of the process that nothing holds a reference to.
    unsafe { call(number::MMAP, [output.0 as usize, OUTPUT_BYTES, access, kind, file as usize, 0]) }
        .map(drop)
}

/// Allocates an arena for Python, and notes its address. An allocator of arenas, as for PyObject_SetArenaAllocator.
///
/// # Safety
/// `arenas` points to the table, all zero at first, and nothing else uses that during the call.
#[cfg_attr(freestanding, unsafe(no_mangle))]
pub unsafe extern "C" fn mainbox_allocate_arena(arenas: *mut Arenas, bytes: usize) -> *mut c_void {
    let (access, kind) = (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    // Fails where Python reports the lack of memory itself.
    let Ok(address) = with_numbers(number::MMAP, [0, bytes, access, kind, usize::MAX, 0]) else {
        return ptr::null_mut();
    };
    // SAFETY: the caller promises it.
    unsafe { (*arenas).add(address, bytes) };
    address as *mut c_void
}

/// Frees an arena.
///
/// # Safety
/// As for [`mainbox_allocate_arena`], which has returned `arena` for as many bytes. Nothing uses the arena any more.
#[cfg_attr(freestanding, unsafe(no_mangle))]
pub unsafe extern "C" fn mainbox_free_arena(arenas: *mut Arenas, arena: *mut c_void, bytes: usize) {
    // SAFETY: the caller promises it.
    unsafe { (*arenas).remove(arena as usize) };
    // SAFETY: the caller promises that it is an arena without a user. This cannot fail for a whole mapping.
    let _ = unsafe { call(number::MUNMAP, [arena as usize, bytes, 0, 0, 0, 0]) };
}

/// Writes the JSON of numbers, each with a comma after it, to a buffer. Returns how many bytes those are.
///
/// # Safety
/// `numbers` points to `count` numbers, and `buffer` to `buffer_bytes` initialized bytes. Nothing else uses either during
/// the call.
#[cfg_attr(freestanding, unsafe(no_mangle))]
pub unsafe extern "C" fn mainbox_json_numbers(
    numbers: *const f64,
    count: usize,
    buffer: *mut u8,
    buffer_bytes: usize,
) -> usize {
    // SAFETY: the caller promises it. Python aligns the content of bytes to eight bytes and more.
    let numbers = unsafe { core::slice::from_raw_parts(numbers, count) };
    // SAFETY: the caller promises it.
    json::numbers(numbers, unsafe { core::slice::from_raw_parts_mut(buffer, buffer_bytes) })
}

/// Writes the JSON of a part of a string, which is UTF-8, to a buffer. Returns how many bytes that is.
///
/// # Safety
/// `text` points to `bytes` bytes, and `buffer` to `buffer_bytes` initialized bytes. Nothing else uses either during the
/// call.
#[cfg_attr(freestanding, unsafe(no_mangle))]
pub unsafe extern "C" fn mainbox_json_string(
    text: *const u8,
    bytes: usize,
    buffer: *mut u8,
    buffer_bytes: usize,
) -> usize {
    // SAFETY: the caller promises it.
    let text = unsafe { core::slice::from_raw_parts(text, bytes) };
    // SAFETY: the caller promises it.
    json::string(text, unsafe { core::slice::from_raw_parts_mut(buffer, buffer_bytes) })
}

/// The memory that moves: see [`crate::heap`].
#[repr(C)]
pub struct Heap {
    /// dl_iterate_phdr(3) of the C library.
    dl_iterate_phdr: unsafe extern "C" fn(Visit, *mut c_void) -> c_int,
    /// What [`mainbox_allocate_arena`] notes arenas in.
    arenas: *mut Arenas,
    /// What sbrk(2) returned at some time before. What the program had on its heap then stays there.
    start: usize,
    /// The size of a page.
    page_bytes: usize,
}

/// What dl_iterate_phdr(3) calls for each object.
type Visit = unsafe extern "C" fn(*const Object, usize, *mut c_void) -> c_int;

/// A program or a library: the beginning of struct dl_phdr_info of link.h.
#[repr(C)]
pub struct Object {
    address: usize,
    name: *const u8,
    headers: *const ProgramHeader,
    number: u16,
}

/// Adds the variables of an object to [`Regions`].
///
/// # Safety
/// `object` describes a loaded object, and `regions` points to [`Regions`] that nothing else uses.
unsafe extern "C" fn add_variables(object: *const Object, _: usize, regions: *mut c_void) -> c_int {
    // SAFETY: the caller promises both.
    let (object, regions) = unsafe { (&*object, &mut *regions.cast::<Regions>()) };
    if !object.headers.is_null() {
        // SAFETY: the headers are a part of the object.
        let headers = unsafe { core::slice::from_raw_parts(object.headers, object.number.into()) };
        regions.add_variables(object.address, headers);
    }
    0
}

/// Moves memory into sealed files that are mapped in its place. Returns how much it has moved, bytes, and why it has not
/// moved the rest.
///
/// # Errors
/// When a file cannot be mapped. The memory may be gone then, and the process must end.
///
/// # Safety
/// `heap` describes this process. No other thread runs.
unsafe fn move_heap(heap: &Heap) -> Result<(usize, Result<(), Errno>), Errno> {
    // SAFETY: the caller promises it.
    let arenas = unsafe { &mut *heap.arenas };
    arenas.close();
    let mut regions = Regions::new(heap.page_bytes, heap.dl_iterate_phdr as usize);
    regions.add_heap(heap.start, with_numbers(number::BRK, [0])?);
    core::iter::successors(arenas.next_above(0), |last| arenas.next_above(*last))
        .for_each(|arena| regions.add(arena, arena + ARENA_BYTES, true));
    // SAFETY: this is dl_iterate_phdr(3) by the contract of the entry.
    unsafe { (heap.dl_iterate_phdr)(add_variables, (&raw mut regions).cast()) };
    let (mut moved, mut number) = (0, 0);
    loop {
        let regions = regions.for_one_file(number);
        if regions.is_empty() {
            return Ok((moved, Ok(())));
        }
        // SAFETY: the regions are parts of the heap, arenas and variables, which are memory of this process.
        let file = match unsafe { sealed_copy(regions) } {
            Ok(file) => file,
            Err(error) => return Ok((moved, Err(error))),
        };
        let mut offset = 0;
        for region in regions {
            // SAFETY: the regions are private memory, no part of the stack, and the file holds what is in them.
            unsafe { map_copy(file, offset, *region) }?;
            offset += region.bytes;
        }
        close(file);
        moved += offset;
        number += regions.len();
    }
}

/// Makes a file with the content of some memory, which nothing can change.
///
/// # Safety
/// The regions are memory of this process.
unsafe fn sealed_copy(regions: &[Region]) -> Result<i32, Errno> {
    let name = c"mainbox-heap".as_ptr() as usize;
    let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    // SAFETY: the name ends with a NUL and is static.
    let file = unsafe { call(number::MEMFD_CREATE, [name, flags, 0, 0, 0, 0]) }? as i32;
    let written = regions.iter().try_for_each(|region| {
        let (mut start, end) = (region.start, region.start + region.bytes);
        while start < end {
            // SAFETY: the call reads what is left of the region, which exists by promise of the caller.
            match unsafe { call(number::WRITE, [file as usize, start, end - start, 0, 0, 0]) }? {
                0 => return Err(EINVAL),
                bytes => start += bytes,
            }
        }
        Ok(())
    });
    let sealed =
        written.and_then(|()| with_numbers(number::FCNTL, [file as usize, F_ADD_SEALS, SEALS]));
    sealed.map(|_| file).inspect_err(|_| close(file))
}

/// Maps a part of a file in place of a region.
///
/// # Safety
/// The region is private memory of this process and no part of the stack. The file holds its content at `offset`. No other
/// thread runs.
unsafe fn map_copy(file: i32, offset: usize, region: Region) -> Result<(), Errno> {
    let Region { start, bytes, is_writable } = region;
    let access = if is_writable { PROT_READ | PROT_WRITE } else { PROT_READ };
    let rest = [start, bytes, access, MAP_PRIVATE | MAP_FIXED, file as usize, offset];
    // SAFETY: the memory has the same content afterwards, since nothing has written to it since the copy.
    unsafe { call(number::MMAP, rest) }.map(drop)
}

/// Makes a system call.
///
/// # Safety
/// The arguments are what the system call expects. Those that are pointers point to memory that lives during the call,
/// and to as much of it as the call reads or writes.
unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the caller vouches for the arguments. The kernel changes the result and, on x86-64, rcx and r11; the stack
    // stays as it is. Memory may change, since that is not excluded.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above; the kernel changes x0 only.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            in("x5") f, options(nostack));
    }
    match usize::try_from(result) {
        Ok(result) => Ok(result),
        Err(_) => Err(Errno(-result as i32)),
    }
}

/// Makes a system call whose arguments are numbers. Those are flags, signals and descriptors.
fn with_numbers<const ARGUMENTS: usize>(
    number: usize,
    arguments: [usize; ARGUMENTS],
) -> Result<usize, Errno> {
    let mut all = [0; 6];
    all.iter_mut().zip(arguments).for_each(|(place, argument)| *place = argument);
    // SAFETY: the callers below use this for calls without pointers only, which change no memory that the process has.
    unsafe { call(number, all) }
}

/// Ends the process. Only the kernel cleans up.
pub(crate) fn exit(status: usize) -> ! {
    loop {
        let _ = with_numbers(number::EXIT_GROUP, [status]);
    }
}

pub(crate) fn process_id() -> i32 {
    with_numbers(number::GETPID, []).map_or(0, |pid| pid as i32)
}

pub(crate) fn parent_id() -> i32 {
    with_numbers(number::GETPPID, []).map_or(0, |pid| pid as i32)
}

pub(crate) fn start_session() -> Result<(), Errno> {
    with_numbers(number::SETSID, []).map(drop)
}

/// Moves this process into a new namespace.
pub(crate) fn unshare(namespace: usize) -> Result<(), Errno> {
    with_numbers(number::UNSHARE, [namespace]).map(drop)
}

/// Asks the kernel to kill this process when its parent ends.
pub(crate) fn die_with_parent() -> Result<(), Errno> {
    with_numbers(number::PRCTL, [PR_SET_PDEATHSIG, SIGKILL]).map(drop)
}

/// Keeps other processes of the same uid from tracing this one and from reading its memory.
pub(crate) fn become_non_dumpable() -> Result<(), Errno> {
    with_numbers(number::PRCTL, [PR_SET_DUMPABLE, 0]).map(drop)
}

pub(crate) fn forbid_new_privileges() -> Result<(), Errno> {
    with_numbers(number::PRCTL, [PR_SET_NO_NEW_PRIVS, 1]).map(drop)
}

/// Changes to a uid and the gid with the same number, without groups.
pub(crate) fn change_uid(uid: u32) -> Result<(), Errno> {
    // The uid last: without the privileges of root, neither groups nor gid can change. The first call reads no groups.
    let uid = uid as usize;
    with_numbers(number::SETGROUPS, [0, 0])?;
    with_numbers(number::SETRESGID, [uid; 3])?;
    with_numbers(number::SETRESUID, [uid; 3]).map(drop)
}

/// Enters a Landlock ruleset.
pub(crate) fn enter_ruleset(ruleset: i32) -> Result<(), Errno> {
    with_numbers(number::LANDLOCK_RESTRICT_SELF, [ruleset as usize, 0]).map(drop)
}

/// Duplicates a descriptor to one with a high number.
pub(crate) fn duplicate_high(descriptor: i32) -> Result<i32, Errno> {
    with_numbers(number::FCNTL, [descriptor as usize, F_DUPFD_CLOEXEC, HIGH]).map(|new| new as i32)
}

/// Duplicates a descriptor to a certain number. What that was is closed.
pub(crate) fn duplicate(descriptor: i32, number: i32) -> Result<(), Errno> {
    with_numbers(number::DUP3, [descriptor as usize, number as usize, O_CLOEXEC]).map(drop)
}

pub(crate) fn close(descriptor: i32) {
    // A descriptor is gone even if this fails.
    let _ = with_numbers(number::CLOSE, [descriptor as usize]);
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: i32) {
    let range = [first as usize, u32::MAX as usize, 0];
    // An old kernel does not have the call, and neither has an old gVisor. An old container engine refuses it.
    if with_numbers(number::CLOSE_RANGE, range).is_err() {
        let mut next = first;
        while next < MOST_DESCRIPTORS {
            close_next(next);
            next += POLLED as i32;
        }
    }
}

/// Closes those of [`POLLED`] descriptors that are open. Under gVisor, a system call for each took longer than the
/// rest of a request.
fn close_next(first: i32) {
    let mut polled = [PollFd { descriptor: 0, events: 0, found: 0 }; POLLED];
    polled.iter_mut().zip(first..).for_each(|(place, number)| place.descriptor = number);
    let (array, mut at_once) = (polled.as_mut_ptr() as usize, [0_i64; 2]);
    let timeout = at_once.as_mut_ptr() as usize;
    // SAFETY: the call reads and writes as many of struct pollfd as there are, may write to the timeout, and reads no set
    // of signals.
    let looked = unsafe { call(number::PPOLL, [array, POLLED, timeout, 0, SIGNAL_SET_BYTES, 0]) };
    // If that fails, any may be open.
    let open = polled.iter().filter(|polled| looked.is_err() || polled.found & POLLNVAL == 0);
    open.for_each(|polled| close(polled.descriptor));
}

/// Opens /dev/null for reading.
pub(crate) fn open_null() -> Result<i32, Errno> {
    // SAFETY: the path ends with a NUL and is static.
    unsafe { call(number::OPENAT, [AT_FDCWD, c"/dev/null".as_ptr() as usize, O_CLOEXEC, 0, 0, 0]) }
        .map(|descriptor| descriptor as i32)
}

/// Mounts a tmpfs at `path`.
pub(crate) fn mount_tmpfs(path: &CStr, options: &CStr) -> Result<(), Errno> {
    let name = c"tmpfs".as_ptr() as usize;
    let (path, options) = (path.as_ptr() as usize, options.as_ptr() as usize);
    // SAFETY: all four strings end with a NUL and live during the call.
    unsafe { call(number::MOUNT, [name, path, name, DATA_ONLY, options, 0]) }.map(drop)
}

pub(crate) fn change_directory(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the path ends with a NUL and lives during the call.
    unsafe { call(number::CHDIR, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// The hard limit of a resource.
pub(crate) fn hard_limit(resource: u32) -> Result<u64, Errno> {
    let mut limits = [0_u64; 2];
    let old = limits.as_mut_ptr() as usize;
    // SAFETY: without new limits, the call writes the two numbers of struct rlimit64 to `limits`.
    unsafe { call(number::PRLIMIT64, [0, resource as usize, 0, old, 0, 0]) }?;
    let [_, hard] = limits;
    Ok(hard)
}

/// Sets the limits of a resource.
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limits = [soft, hard];
    // SAFETY: the call reads the two numbers of struct rlimit64 from `limits`.
    unsafe {
        call(number::PRLIMIT64, [0, resource as usize, limits.as_ptr() as usize, 0, 0, 0]).map(drop)
    }
}

/// Gives up every capability, even if the worker stays root.
pub(crate) fn drop_capabilities() -> Result<(), Errno> {
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    // The effective, permitted and inheritable sets, each in two parts.
    let empty = [0_u32; 6];
    let (header, sets) = (header.as_ptr() as usize, empty.as_ptr() as usize);
    // SAFETY: the call reads struct __user_cap_header_struct and two of struct __user_cap_data_struct.
    unsafe { call(number::CAPSET, [header, sets, 0, 0, 0, 0]) }.map(drop)
}

/// struct sock_fprog of linux/filter.h.
#[repr(C)]
struct Program {
    length: u16,
    filter: *const Instruction,
}

/// Installs a seccomp filter in this process.
pub(crate) fn install_filter(filter: &[Instruction]) -> Result<(), Errno> {
    let length = u16::try_from(filter.len()).map_err(|_| EINVAL)?;
    let program = Program { length, filter: filter.as_ptr() };
    let program = ptr::from_ref(&program) as usize;
    // SAFETY: the call reads the program and its instructions. The kernel does not require alignment.
    unsafe { call(number::PRCTL, [PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0, 0]) }
        .map(drop)
}

/// Blocks the signals in `set`, and no others.
fn set_mask(set: u64) -> Result<(), Errno> {
    let set = ptr::from_ref(&set) as usize;
    // SAFETY: the call reads a set of signals of that size, and writes no old one.
    unsafe { call(number::RT_SIGPROCMASK, [SIG_SETMASK, set, 0, SIGNAL_SET_BYTES, 0, 0]) }.map(drop)
}

/// Lets signals have their effect, in a worker.
pub(crate) fn allow_signals() {
    // Fails for no valid argument.
    let _ = set_mask(0);
}

/// Blocks every signal that can be blocked. Python would note one that it has a handler for, and act on it in each worker.
pub(crate) fn block_signals() -> Result<(), Errno> {
    set_mask(u64::MAX)
}

/// Opens a descriptor that becomes readable when a child ends.
pub(crate) fn open_child_signals() -> Result<i32, Errno> {
    let signals: u64 = 1 << (SIGCHLD - 1);
    let set = ptr::from_ref(&signals) as usize;
    let flags = O_CLOEXEC | O_NONBLOCK;
    // SAFETY: the call reads a set of signals of that size.
    unsafe { call(number::SIGNALFD4, [usize::MAX, set, SIGNAL_SET_BYTES, flags, 0, 0]) }
        .map(|descriptor| descriptor as i32)
}

/// Reads the signals that came, which say no more than that children have ended.
pub(crate) fn take_signals(descriptor: i32) {
    // struct signalfd_siginfo. SIGCHLD is pending at most once, however many children have ended.
    let _ = read(descriptor, &mut [0; 128]);
}

/// Which of two descriptors can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) first: bool,
    pub(crate) second: bool,
}

impl Ready {
    pub(crate) const NEITHER: Ready = Ready { first: false, second: false };
}

/// struct pollfd of poll.h.
#[derive(Clone, Copy)]
#[repr(C)]
struct PollFd {
    descriptor: i32,
    events: u16,
    found: u16,
}

/// Waits until one of two descriptors can be read or has failed, for at most `timeout_ms` milliseconds if that is at least
/// zero.
pub(crate) fn wait_for(first: i32, second: i32, timeout_ms: i32) -> Result<Ready, Errno> {
    let mut polled =
        [first, second].map(|descriptor| PollFd { descriptor, events: POLLIN, found: 0 });
    // struct timespec: seconds and nanoseconds.
    let timeout_ms = i64::from(timeout_ms);
    let mut left = [timeout_ms / 1000, timeout_ms % 1000 * 1_000_000];
    let timeout = if timeout_ms < 0 { 0 } else { left.as_mut_ptr() as usize };
    loop {
        let array = polled.as_mut_ptr() as usize;
        // SAFETY: the call reads and writes two of struct pollfd, may write the remaining time to `left`, which is not
        // borrowed otherwise, and reads no set of signals.
        match unsafe { call(number::PPOLL, [array, 2, timeout, 0, SIGNAL_SET_BYTES, 0]) } {
            Err(EINTR) => {}
            result => break result.map(drop)?,
        };
    }
    let [first, second] = polled;
    Ok(Ready { first: first.found != 0, second: second.found != 0 })
}

fn read(descriptor: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    let (start, length) = (buffer.as_mut_ptr() as usize, buffer.len());
    // SAFETY: the call writes at most as many bytes as the buffer has.
    unsafe { call(number::READ, [descriptor as usize, start, length, 0, 0, 0]) }
}

/// Fills the buffer; `None` if the other end is closed or reading fails.
pub(crate) fn read_exactly(descriptor: i32, mut buffer: &mut [u8]) -> Option<()> {
    while !buffer.is_empty() {
        match read(descriptor, buffer) {
            Ok(0) => return None,
            Ok(length) => buffer = buffer.get_mut(length..)?,
            Err(EINTR) => {}
            Err(_) => return None,
        }
    }
    Some(())
}

/// Sends all bytes over a socket.
pub(crate) fn send(socket: i32, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let (start, length) = (bytes.as_ptr() as usize, bytes.len());
        // SAFETY: the call reads the bytes, and no address.
        match unsafe { call(number::SENDTO, [socket as usize, start, length, MSG_NOSIGNAL, 0, 0]) }
        {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// struct iovec of sys/uio.h.
#[repr(C)]
struct Part {
    start: *mut u8,
    length: usize,
}

/// struct msghdr of sys/socket.h, as the kernel has it.
#[repr(C)]
struct Message {
    name: *mut c_void,
    name_length: u32,
    parts: *mut Part,
    number_of_parts: usize,
    control: *mut Control,
    control_length: usize,
    flags: u32,
}

/// struct cmsghdr of sys/socket.h with the descriptors that follow it.
#[repr(C)]
struct Control {
    length: usize,
    level: u32,
    kind: u32,
    descriptors: [i32; Order::MAX_DESCRIPTORS],
}

/// The size of the struct cmsghdr alone, bytes.
const CONTROL_HEADER_BYTES: usize = 16;

/// Receives a message and the descriptors that are attached to it. Returns its length, which is zero when the other end is
/// closed.
pub(crate) fn receive(
    socket: i32,
    buffer: &mut [u8],
) -> Result<(usize, [Option<i32>; Order::MAX_DESCRIPTORS]), Errno> {
    let mut part = Part { start: buffer.as_mut_ptr(), length: buffer.len() };
    let mut control =
        Control { length: 0, level: 0, kind: 0, descriptors: [0; Order::MAX_DESCRIPTORS] };
    let mut message = Message {
        name: ptr::null_mut(),
        name_length: 0,
        parts: &raw mut part,
        number_of_parts: 1,
        control: &raw mut control,
        control_length: size_of::<Control>(),
        flags: 0,
    };
    let length = loop {
        let message = &raw mut message as usize;
        // SAFETY: the call writes to the message, to the buffer and to `control`, each within its length. All live until
        // after the call.
        match unsafe {
            call(number::RECVMSG, [socket as usize, message, MSG_CMSG_CLOEXEC, 0, 0, 0])
        } {
            Err(EINTR) => {}
            result => break result?,
        }
    };
    // The kernel leaves out descriptors that it cannot make.
    if message.flags & MSG_CTRUNC != 0 {
        return Err(EPROTO);
    }
    let attached = match (control.level, control.kind) {
        (SOL_SOCKET, SCM_RIGHTS) => {
            control.length.saturating_sub(CONTROL_HEADER_BYTES) / size_of::<i32>()
        }
        _ => 0,
    };
    let mut descriptors = [None; Order::MAX_DESCRIPTORS];
    for (place, descriptor) in descriptors.iter_mut().zip(control.descriptors).take(attached) {
        *place = Some(descriptor);
    }
    Ok((length, descriptors))
}

/// Reaps a child if it has ended.
pub(crate) fn reap(pid: i32) -> Result<Option<Exit>, Errno> {
    let mut status = 0_i32;
    // struct rusage: user and system time as seconds and microseconds, then the peak resident set in KiB, and more.
    let mut usage = [0_u64; 18];
    let (status_at, usage_at) = (&raw mut status as usize, usage.as_mut_ptr() as usize);
    // SAFETY: the call writes an integer to `status` and struct rusage, which has 18 numbers, to `usage`.
    match unsafe { call(number::WAIT4, [pid as usize, status_at, WNOHANG, usage_at, 0, 0]) }? {
        0 => Ok(None),
        _ => {
            let [user, user_us, system, system_us, peak_kib, ..] = usage;
            let cpu_us = (user + system) * 1_000_000 + user_us + system_us;
            Ok(Some(Exit { status, cpu_us, peak_bytes: peak_kib * 1024 }))
        }
    }
}

/// Splits bytes behind their first NUL; `None` without one. The standard library has the same, but as code of its own, which
/// would have to be linked.
pub(crate) fn split_text(bytes: &[u8]) -> Option<(&CStr, &[u8])> {
    let length = bytes.iter().position(|byte| *byte == 0)?;
    let (text, rest) = bytes.split_at_checked(length + 1)?;
    // SAFETY: the text ends with the first NUL.
    Some((unsafe { CStr::from_bytes_with_nul_unchecked(text) }, rest))
}

/// What the compiler calls for copies and comparisons, and what it needs although nothing here panics.
#[cfg(freestanding)]
mod for_the_compiler {
    // SAFETY (of all): the compiler calls them under the contracts of the C standard. Volatile accesses, since otherwise it
    // would make calls of the same functions out of these loops.

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        for index in 0..length {
            // SAFETY: both have `length` bytes.
            unsafe { to.add(index).write_volatile(from.add(index).read_volatile()) };
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
        for index in 0..length {
            // SAFETY: it has `length` bytes.
            unsafe { to.add(index).write_volatile(byte as u8) };
        }
        to
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        super::exit(70)
    }
}

#[cfg(test)]
pub(crate) mod tests;
