//! Every `unsafe` block of mainbox, each a thin wrapper around what the safe crates lack.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

use super::namespaces::{Plan, Step};

/// The descriptor on which a zygote finds its control socket.
const CONTROL_FD: RawFd = 3;
/// Descriptors that our own parent may have left open, at the most.
const MOST_INHERITED: RawFd = 1024;

/// A program to start: everything is laid out before the fork, since nothing may be allocated after it.
#[derive(Debug)]
pub struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// A program with its arguments (the first is its own name) and its whole environment, as `NAME=value`.
    ///
    /// # Errors
    /// When one of them contains a NUL.
    pub fn new(
        path: impl Into<Vec<u8>>,
        arguments: impl IntoIterator<Item = impl Into<Vec<u8>>>,
        environment: impl IntoIterator<Item = impl Into<Vec<u8>>>,
    ) -> io::Result<Program> {
        Ok(Program {
            path: CString::new(path)?,
            arguments: arguments.into_iter().map(CString::new).collect::<Result<_, _>>()?,
            environment: environment.into_iter().map(CString::new).collect::<Result<_, _>>()?,
        })
    }
}

/// A step of the start of a program.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnStep {
    /// Making the plan: looking at the paths of the policy.
    #[error("plan")]
    Plan,
    /// Opening /dev/null for stdin and stdout.
    #[error("open /dev/null")]
    DevNull,
    /// Making the pipe on which the child reports a failure.
    #[error("pipe")]
    Pipe,
    /// clone(2).
    #[error("clone")]
    Clone,
    /// A step of the plan, in the child.
    #[error("{}", .0.describe())]
    Planned(Step),
    /// Moving the descriptors to their numbers, in the child.
    #[error("place descriptors")]
    Descriptors,
    /// execve(2), in the child.
    #[error("execute the program")]
    Execute,
    /// waitpid(2) for a child that only carries out a plan.
    #[error("wait")]
    Wait,
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct SpawnError {
    /// The step that failed.
    pub step: SpawnStep,
    /// The kernel's answer.
    pub source: io::Error,
}

impl SpawnError {
    fn new(step: SpawnStep, source: impl Into<io::Error>) -> SpawnError {
        SpawnError { step, source: source.into() }
    }
}

/// The steps of a child that are not in its plan. They are numbered after those of the plan.
const DESCRIPTORS: usize = 0;
const EXEC: usize = 1;

/// Starts `program` in the namespaces and after the steps of `plan`, with `control` as its descriptor 3, /dev/null as 0
/// and 1, our stderr as 2 and nothing else. It dies with us, where the kernel allows to ask for that. Returns when the
/// program runs.
///
/// # Errors
/// The step that failed and the kernel's answer, which the child reports through a pipe as two 32-bit numbers.
pub fn spawn(program: &Program, control: BorrowedFd<'_>, plan: &Plan) -> Result<Pid, SpawnError> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| SpawnError::new(SpawnStep::DevNull, error))?;
    let arguments = pointers(&program.arguments);
    let environment = pointers(&program.environment);
    let (null, control) = (null.as_raw_fd(), control.as_raw_fd());
    clone_and(plan, |reporter| {
        let after_plan = place_descriptors(null, control, reporter).map_or(DESCRIPTORS, |()| {
            // SAFETY: all are pointers to NUL-terminated strings, or to vectors of such that end with a null pointer,
            // and outlive the call.
            unsafe {
                libc::execve(program.path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            }
            EXEC
        });
        Err((plan.steps.len() + after_plan, last_errno()))
    })
}

/// Carries out `plan` in a child that then ends, to see whether it works here.
///
/// # Errors
/// The step that failed and the kernel's answer.
pub fn try_plan(plan: &Plan) -> Result<(), SpawnError> {
    let child = clone_and(plan, |_| Ok(()))?;
    nix::sys::wait::waitpid(child, None)
        .map(drop)
        .map_err(|errno| SpawnError::new(SpawnStep::Wait, errno))
}

/// Clones a child that carries out `plan` and then `last`, which may only make system calls. Returns when the child has
/// executed a program or ended well.
fn clone_and(
    plan: &Plan,
    last: impl FnOnce(RawFd) -> Result<(), (usize, i32)>,
) -> Result<Pid, SpawnError> {
    let (report, reporter) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| SpawnError::new(SpawnStep::Pipe, errno))?;
    let flags = libc::c_long::from(plan.flags().bits() | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM and with no stack of its own the child is a copy of us, as after fork. It makes nothing
    // but system calls on values made before the clone, then execs or exits, so it touches no lock and no allocator
    // state that another thread may have held.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    if child == 0 {
        let done = plan
            .steps
            .iter()
            .enumerate()
            .try_for_each(|(index, step)| carry_out(step).ok_or_else(|| (index, last_errno())))
            .and_then(|()| last(reporter.as_raw_fd()));
        // SAFETY: write and _exit are async-signal-safe; the buffer is as long as is said.
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
    drop(reporter);
    let child = Pid::from_raw(child as i32);
    let mut message = [0; 8];
    match io::Read::read(&mut std::fs::File::from(report), &mut message) {
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

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

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

/// One step of a plan, in the child; `None` leaves the reason in errno.
fn carry_out(step: &Step) -> Option<()> {
    // SAFETY: every pointer is that of a NUL-terminated string of the plan, made before the clone; the calls keep none.
    let answer = unsafe {
        match step {
            Step::Write(path, text) => {
                let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                let length = text.as_bytes().len();
                if file >= 0 && libc::write(file, text.as_ptr().cast(), length) == length as isize {
                    libc::close(file)
                } else {
                    -1
                }
            }
            Step::Dumpable(dumpable) => {
                libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(*dumpable), 0, 0, 0);
                0
            }
            Step::Directory(path) => match libc::mkdir(path.as_ptr(), 0o755) {
                -1 if last_errno() == libc::EEXIST => 0,
                answer => answer,
            },
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
                let flags = libc::MS_REC | libc::MS_PRIVATE;
                match libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()) {
                    -1 if last_errno() == libc::EINVAL => 0,
                    answer => answer,
                }
            }
            Step::Root(path) => {
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
            Step::Chroot(path) => {
                if libc::chroot(path.as_ptr()) == 0 {
                    libc::chdir(c"/".as_ptr())
                } else {
                    -1
                }
            }
            Step::HostName(name) => libc::sethostname(name.as_ptr(), name.as_bytes().len()),
            Step::Unshare(namespaces) => libc::unshare(namespaces.bits()),
        }
    };
    (answer == 0).then_some(())
}

/// Gives the descriptors of a program their numbers, in the child; `None` leaves the reason in errno.
fn place_descriptors(null: RawFd, control: RawFd, reporter: RawFd) -> Option<()> {
    // SAFETY: system calls on integers only. Where prctl is refused, the control socket's end tells the child.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Out of the way of what dup2 overwrites.
        let high = libc::fcntl(control, libc::F_DUPFD_CLOEXEC, CONTROL_FD + 1);
        let placed = high >= 0
            && reporter > CONTROL_FD
            && libc::dup2(null, 0) == 0
            && libc::dup2(null, 1) == 1
            && libc::dup2(high, CONTROL_FD) == CONTROL_FD;
        // What we inherited from our own parent may lack the flag.
        for descriptor in CONTROL_FD + 1..MOST_INHERITED {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        placed.then_some(())
    }
}

/// Runs `work` in a short-lived child and returns what it returned: 0, or the errno of what failed. For mechanisms that
/// change the process for good.
///
/// # Errors
/// When the fork fails or the child dies, e.g. of a filter.
pub fn in_child(work: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: called at start-up, before any thread exists, so the child may run any code; it ends with _exit, so no
    // destructor or exit handler of ours runs twice.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            let code = work();
            // SAFETY: _exit takes any number and does not return.
            unsafe { libc::_exit(code) }
        }
        nix::unistd::ForkResult::Parent { child } => match nix::sys::wait::waitpid(child, None)? {
            nix::sys::wait::WaitStatus::Exited(_, code) => Ok(code),
            other => Err(io::Error::other(format!("the child ended with {other:?}"))),
        },
    }
}

/// Whether this process alone sees what is in its memory: keeps others of the same uid, and scripts that keep our uid,
/// from our environment, memory and descriptors.
///
/// # Errors
/// The kernel's, where prctl is refused.
pub fn set_non_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// Makes orphans of our children ours, so that we reap them.
///
/// # Errors
/// The kernel's, where prctl is refused.
pub fn set_child_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// No program that we start gets more rights than we have.
///
/// # Errors
/// The kernel's, where prctl is refused.
pub fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn prctl(option: i32, value: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: these options take integers only.
    match unsafe { libc::prctl(option, value, zero, zero, zero) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// CPU time that a process has used so far, all its threads together. `None` when it is gone.
pub fn cpu_time(process: Pid) -> Option<Duration> {
    // As clock_getcpuclockid(3): the complement of the id, shifted by three, and 2 for the clock of the scheduler.
    let clock = (!process.as_raw() << 3) | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes to the timespec that it is given, which lives until after the call.
    let answer = unsafe { libc::clock_gettime(clock, &mut time) };
    (answer == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// The kinds of System V IPC objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpcKind {
    /// shmget(2).
    SharedMemory,
    /// semget(2).
    Semaphores,
    /// msgget(2).
    Messages,
}

/// Removes a System V IPC object.
///
/// # Errors
/// The kernel's.
pub fn remove_ipc(kind: IpcKind, id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no buffer: the null pointers and the zero are not looked at.
    let answer = unsafe {
        match kind {
            IpcKind::SharedMemory => libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()),
            IpcKind::Semaphores => libc::semctl(id, 0, libc::IPC_RMID),
            IpcKind::Messages => libc::msgctl(id, libc::IPC_RMID, ptr::null_mut()),
        }
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Hands a descriptor to the runtime, to be waited for.
///
/// # Errors
/// When it cannot be waited for.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and AsyncFd drops it last.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::other)
}
