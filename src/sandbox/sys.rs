//! All `unsafe` code of mainbox outside tests: thin wrappers around system calls for which `nix` and `std` have no safe
//! function.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::namespaces::{Plan, Step};
pub use super::program::{Program, SpawnError, SpawnStep};

/// The descriptor of a zygote's control socket, in the zygote.
const CONTROL_FD: RawFd = 3;
/// The most descriptors of a process, unless an administrator has raised the limit (fs.nr_open).
const MOST_DESCRIPTORS: u64 = 1 << 20;
/// The number of signals on Linux.
const SIGNALS: i32 = 64;

/// The numbers of the steps of a child that are not in its plan. They count from the end of the plan.
const DESCRIPTORS: usize = 0;
const EXEC: usize = 1;

/// Starts `program` in the namespaces and after the steps of `plan`. Its descriptors are /dev/null as 0 and 1, the
/// stderr of this process as 2, `control` as 3, and no others. No signal is blocked or ignored. It is killed when this
/// process dies, unless the kernel refuses prctl(2). Returns when the program runs.
///
/// # Errors
/// The step that failed and the error of its system call.
pub fn spawn(program: &Program, control: BorrowedFd<'_>, plan: &Plan) -> Result<Pid, SpawnError> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| SpawnError::new(SpawnStep::DevNull, error))?;
    let (arguments, environment) = (program.argv(), program.envp());
    let (null, control) = (null.as_raw_fd(), control.as_raw_fd());
    clone_and(plan, |reporter| {
        reset_signals();
        let after_plan = place_descriptors(null, control, reporter).map_or(DESCRIPTORS, |()| {
            // SAFETY: `path` is a NUL-terminated string. `arguments` and `environment` are arrays of pointers to
            // NUL-terminated strings that end with a null pointer. `program` owns the strings and is borrowed until
            // after the call, and the child has its own copy of all of them.
            unsafe {
                libc::execve(program.path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            }
            // execve returns only if it failed.
            EXEC
        });
        Err((plan.steps.len() + after_plan, last_errno()))
    })
}

/// Tries whether `plan` works on this host: carries it out in a child that then exits.
///
/// # Errors
/// The step that failed and the error of its system call.
pub fn try_plan(plan: &Plan) -> Result<(), SpawnError> {
    let child = clone_and(plan, |_| Ok(()))?;
    nix::sys::wait::waitpid(child, None)
        .map(drop)
        .map_err(|errno| SpawnError::new(SpawnStep::Wait, errno))
}

/// Clones a child that carries out `plan` and then `last`. `last` must make system calls only and must not allocate; it
/// returns the number of the step that failed and its errno. Returns when the child has executed a program or exited
/// without an error.
fn clone_and(
    plan: &Plan,
    last: impl FnOnce(RawFd) -> Result<(), (usize, i32)>,
) -> Result<Pid, SpawnError> {
    // The child writes a failure to this pipe as two 32-bit numbers: the step and its errno. If it executes a program,
    // O_CLOEXEC closes its end, and the read below ends without data.
    let (report, reporter) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| SpawnError::new(SpawnStep::Pipe, errno))?;
    // clone(2) instead of fork and unshare, since a process that unshares a pid namespace does not enter it itself;
    // only its children do. The raw system call, since the wrapper of the C library demands a stack. SIGCHLD lets
    // waitpid(2) wait for the child.
    let flags = libc::c_long::from(plan.flags().bits() | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM and with a null stack, clone behaves like fork: the child continues here with a copy of
    // the memory, so it cannot corrupt that of the parent. Another thread may have held a lock or been inside the
    // allocator at the time of the copy. The child touches neither: it makes only system calls on values that were
    // created before the clone, and then executes a program or exits.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    if child == 0 {
        let done = plan
            .steps
            .iter()
            .enumerate()
            .try_for_each(|(index, step)| carry_out(step).ok_or_else(|| (index, last_errno())))
            .and_then(|()| last(reporter.as_raw_fd()));
        // SAFETY: write reads `size_of_val(&message)` bytes from `message`, which lives until after the call. _exit
        // takes any number. Both are async-signal-safe, so they are allowed in a child of a process with threads.
        // _exit, and not exit, since destructors and exit handlers belong to the parent.
        unsafe {
            if let Err((index, errno)) = done {
                let message = [(index as i32).to_ne_bytes(), errno.to_ne_bytes()];
                libc::write(reporter.as_raw_fd(), message.as_ptr().cast(), size_of_val(&message));
            }
            libc::_exit(i32::from(done.is_err()))
        }
    }
    if child < 0 {
        return Err(SpawnError::new(SpawnStep::Clone, io::Error::last_os_error()));
    }
    // Otherwise the read below would wait for this process itself.
    drop(reporter);
    let child = Pid::from_raw(child as i32);
    let mut message = [0; 8];
    match io::Read::read(&mut std::fs::File::from(report), &mut message) {
        // The child is about to exit. Without waiting, it would stay a zombie.
        Ok(8) => {
            let _ = nix::sys::wait::waitpid(child, None);
            Err(child_error(plan, message))
        }
        _ => Ok(child),
    }
}

fn last_errno() -> i32 {
    nix::errno::Errno::last_raw()
}

/// Decodes the report of a child that failed.
fn child_error(plan: &Plan, message: [u8; 8]) -> SpawnError {
    let [a, b, c, d, errno @ ..] = message;
    let index = i32::from_ne_bytes([a, b, c, d]) as usize;
    let step = match plan.steps.get(index) {
        Some(step) => SpawnStep::Planned(step.clone()),
        None if index == plan.steps.len() + EXEC => SpawnStep::Execute,
        None => SpawnStep::Descriptors,
    };
    SpawnError { step, source: io::Error::from_raw_os_error(i32::from_ne_bytes(errno)) }
}

/// Carries out one step of a plan, in the child. Returns `None` on failure, with the reason in errno.
fn carry_out(step: &Step) -> Option<()> {
    // SAFETY: every pointer is null where the call allows it, or points to a NUL-terminated string that the plan owns.
    // The plan is borrowed until after the calls, and no call keeps a pointer. The lengths are those of the strings.
    // The calls are plain wrappers of system calls, without allocation or locks. Those that change the process, such as
    // chroot and unshare, affect this child only.
    let status = unsafe {
        match step {
            Step::Write(path, text) => {
                let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                // The files of id maps accept a single write with the whole text, so a short write is a failure.
                let length = text.as_bytes().len();
                if file >= 0 && libc::write(file, text.as_ptr().cast(), length) == length as isize {
                    libc::close(file)
                } else {
                    -1
                }
            }
            // The result is ignored: see the documentation of the step.
            Step::Dumpable(dumpable) => {
                libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(*dumpable), 0, 0, 0);
                0
            }
            Step::Directory(path) => match libc::mkdir(path.as_ptr(), 0o755) {
                -1 if last_errno() == libc::EEXIST => 0,
                status => status,
            },
            // A bind mount of a file needs an existing file as its target. If open fails, close fails too, with EBADF.
            Step::File(path) => {
                libc::close(libc::open(path.as_ptr(), libc::O_CREAT | libc::O_CLOEXEC, 0o444))
            }
            Step::Link(target, path) => libc::symlink(target.as_ptr(), path.as_ptr()),
            Step::Mount(source, target, kind, flags, options) => libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                flags.bits(),
                options.as_ptr().cast(),
            ),
            Step::Private => {
                // MS_REC, since the propagation of each mount is a setting of its own. The other arguments are ignored.
                let flags = libc::MS_REC | libc::MS_PRIVATE;
                match libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()) {
                    -1 if last_errno() == libc::EINVAL => 0,
                    status => status,
                }
            }
            Step::Root(path) => {
                // pivot_root(".", ".") stacks the old root on top of the new one, so that it needs no directory of its
                // own, and "." then resolves to the old root, which umount2 detaches. MNT_DETACH, since it is in use.
                // See https://man7.org/linux/man-pages/man2/pivot_root.2.html.
                let here = c".".as_ptr();
                if libc::chdir(path.as_ptr()) == 0
                    && libc::syscall(libc::SYS_pivot_root, here, here) == 0
                    && libc::umount2(here, libc::MNT_DETACH) == 0
                {
                    libc::chdir(c"/".as_ptr())
                } else {
                    -1
                }
            }
            Step::Move(path) => {
                // The new root covers the old one for every path, but this process still has the old one as its root.
                let here = c".".as_ptr();
                let (none, root) = (ptr::null(), c"/".as_ptr());
                if libc::chdir(path.as_ptr()) == 0
                    && libc::mount(here, root, none, libc::MS_MOVE, none.cast()) == 0
                    && libc::chroot(here) == 0
                {
                    libc::chdir(root)
                } else {
                    -1
                }
            }
            Step::Chroot(path) => {
                // chroot does not change the working directory, through which the old root would stay reachable.
                if libc::chroot(path.as_ptr()) == 0 { libc::chdir(c"/".as_ptr()) } else { -1 }
            }
            Step::HostName(name) => libc::sethostname(name.as_ptr(), name.as_bytes().len()),
            Step::Unshare(namespaces) => libc::unshare(namespaces.bits()),
        }
    };
    (status == 0).then_some(())
}

/// Gives the descriptors of a program their numbers, in the child. Returns `None` on failure, with the reason in errno.
fn place_descriptors(null: RawFd, control: RawFd, reporter: RawFd) -> Option<()> {
    // SAFETY: all arguments are integers, so no memory is accessed. The descriptors are those of the child alone, which
    // runs no Rust code that owns one of them before it executes a program or exits.
    unsafe {
        // Kills the child when the supervisor dies, even by SIGKILL. The kernel watches the thread that created the
        // child; that is the main thread, on which the runtime runs. If prctl is refused, the zygote ends when its
        // control socket closes.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // The control socket may have one of the numbers that dup2 overwrites, so it moves above them first.
        let high = libc::fcntl(control, libc::F_DUPFD_CLOEXEC, CONTROL_FD + 1);
        let placed = high >= 0
            // The reporter must survive until a failure is reported.
            && reporter > CONTROL_FD
            && libc::dup2(null, 0) == 0
            && libc::dup2(null, 1) == 1
            && libc::dup2(high, CONTROL_FD) == CONTROL_FD;
        // Descriptors that the supervisor inherited may lack O_CLOEXEC. Only the reporter stays open until then.
        let closed =
            close_range(CONTROL_FD + 1, reporter - 1) && close_range(reporter + 1, RawFd::MAX);
        (placed && closed).then_some(())
    }
}

/// Closes the descriptors from `first` to `last`, in the child. Returns whether it could.
fn close_range(first: RawFd, last: RawFd) -> bool {
    if first > last {
        return true;
    }
    let (first, last) = (first as libc::c_uint, last as libc::c_uint);
    let flags: libc::c_uint = 0;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit to `limit`, which is borrowed exclusively until after the call. The other
    // arguments are integers. No Rust code of the child owns one of the descriptors.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, last, flags) == 0 {
            return true;
        }
        // A kernel before 5.9. There, descriptors above the hard limit do not exist, unless it was lowered.
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return false;
        }
        for descriptor in first..=last.min(limit.rlim_max.min(MOST_DESCRIPTORS) as libc::c_uint) {
            // Fails for most numbers, since they are not open.
            libc::close(descriptor as RawFd);
        }
    }
    true
}

/// Unblocks every signal and resets its action, in the child: a program inherits both. Errors are ignored, since SIGKILL
/// and SIGSTOP have no action.
fn reset_signals() {
    // SAFETY: the set is a plain value that sigemptyset fills in and sigprocmask reads. SIG_DFL is no function of this
    // process. The calls are async-signal-safe and concern the child only.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        for number in 1..=SIGNALS {
            libc::signal(number, libc::SIG_DFL);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Runs `work` in a short-lived child and returns its result: 0, or the errno of a failure. This is for trying
/// mechanisms that cannot be undone. It must be called while the process has a single thread.
///
/// # Errors
/// When the fork fails, or a signal ends the child, for example since a filter killed it.
pub fn in_child(work: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: in a process with threads, the child of a fork could only make async-signal-safe calls. The probe runs
    // before the runtime and any other thread exists, so `work` may run any code. The child ends with _exit, so no
    // destructor or exit handler of the parent runs twice.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            // A panic must not unwind into the code of the parent, whose destructors would remove its directories.
            let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let code = work.unwrap_or(libc::EIO);
            // SAFETY: _exit takes any number, accesses no memory and does not return.
            unsafe { libc::_exit(code) }
        }
        nix::unistd::ForkResult::Parent { child } => match nix::sys::wait::waitpid(child, None)? {
            nix::sys::wait::WaitStatus::Exited(_, code) => Ok(code),
            nix::sys::wait::WaitStatus::Signaled(_, signal, _) => {
                Err(io::Error::other(format!("the child was killed by {signal}")))
            }
            _ => Err(io::Error::other("the child did not exit")),
        },
    }
}

/// Makes this process non-dumpable. Processes with the same uid, such as scripts without a uid of their own, then
/// cannot read its environment, memory and descriptors in /proc or trace it:
/// <https://man7.org/linux/man-pages/man2/PR_SET_DUMPABLE.2const.html>.
///
/// # Errors
/// When prctl(2) is refused.
pub fn set_non_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// Makes this process the parent of its orphaned descendants, so that it can reap them:
/// <https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html>.
///
/// # Errors
/// When prctl(2) is refused.
pub fn set_child_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// Sets no_new_privs: programs that this process executes cannot gain privileges, for example from a set-user-ID bit.
/// The kernel demands it for installing filters without privileges:
/// <https://docs.kernel.org/userspace-api/no_new_privs.html>.
///
/// # Errors
/// When prctl(2) is refused.
pub fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn prctl(option: i32, value: libc::c_ulong) -> io::Result<()> {
    // prctl is variadic and reads its arguments as unsigned long. Some options fail unless the unused ones are zero.
    let zero: libc::c_ulong = 0;
    // SAFETY: the options of the callers above take integers only, so the kernel accesses no memory.
    match unsafe { libc::prctl(option, value, zero, zero, zero) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Installs a seccomp filter in this thread.
///
/// # Errors
/// When prctl(2) refuses it.
pub fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: `filter` and the instructions that it points to outlive the call, which copies them and writes to neither.
    let status = unsafe {
        let (option, mode) = (libc::PR_SET_SECCOMP, libc::c_ulong::from(libc::SECCOMP_MODE_FILTER));
        libc::prctl(option, mode, &raw const filter)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The CPU time that all threads of a process have used so far. Returns `None` if the process is gone.
pub fn cpu_time(process: Pid) -> Option<Duration> {
    // The clock id of clock_getcpuclockid(3), without its system call that checks the process: the complement of the
    // process id in the upper bits, 0 in bit 2 for a process rather than a thread, and 2 (CPUCLOCK_SCHED) in the lower
    // bits for the CPU time as the scheduler counts it. See include/linux/posix-timers.h in the kernel.
    let clock = (!process.as_raw() << 3) | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one timespec to `time`, which is borrowed exclusively until after the call. It
    // accepts any clock id and fails if it is invalid.
    let status = unsafe { libc::clock_gettime(clock, &mut time) };
    (status == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// The input and output priority of a process: <https://man7.org/linux/man-pages/man2/ioprio_set.2.html>. `None` if the
/// kernel does not tell it.
pub fn io_priority(process: Pid) -> Option<i32> {
    // IOPRIO_WHO_PROCESS of linux/ioprio.h.
    let (whose, id) = (1 as libc::c_long, libc::c_long::from(process.as_raw()));
    // SAFETY: ioprio_get takes integers only.
    let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, whose, id) };
    i32::try_from(priority).ok().filter(|priority| *priority >= 0)
}

/// A kind of System V IPC object: <https://man7.org/linux/man-pages/man7/sysvipc.7.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpcKind {
    /// A shared memory segment, from shmget(2).
    SharedMemory,
    /// A set of semaphores, from semget(2).
    Semaphores,
    /// A message queue, from msgget(2).
    Messages,
}

/// Removes the System V IPC object with this `id`.
///
/// # Errors
/// When the object does not exist, or belongs to another user.
pub fn remove_ipc(kind: IpcKind, id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID uses no buffer, so the kernel ignores the null pointers, the semaphore number and the missing
    // fourth argument of semctl. This process maps no such segment itself, so no memory of it goes away.
    let status = unsafe {
        match kind {
            IpcKind::SharedMemory => libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()),
            IpcKind::Semaphores => libc::semctl(id, 0, libc::IPC_RMID),
            IpcKind::Messages => libc::msgctl(id, libc::IPC_RMID, ptr::null_mut()),
        }
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens a descriptor that refers to a process: <https://man7.org/linux/man-pages/man2/pidfd_open.2.html>.
///
/// # Errors
/// When the process is gone, or the kernel has no such descriptors.
pub fn pidfd_open(process: Pid) -> io::Result<OwnedFd> {
    let flags: libc::c_uint = 0;
    // SAFETY: the arguments are integers, so no memory is accessed.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), flags) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else knows its number. It has O_CLOEXEC.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// Sends a signal to the process that a descriptor from [`pidfd_open`] refers to.
///
/// # Errors
/// When the process is gone.
pub fn pidfd_signal(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    let (info, flags): (*const libc::siginfo_t, libc::c_uint) = (ptr::null(), 0);
    let (process, signal) = (process.as_raw_fd(), signal as libc::c_int);
    // SAFETY: with a null pointer, the kernel reads no siginfo_t and fills one in as kill(2) does. The other arguments are
    // integers.
    let status =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, signal, info, flags) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
