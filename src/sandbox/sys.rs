//! Every `unsafe` block of mainbox, each a thin wrapper around what the safe crates lack.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

/// The descriptor on which a zygote finds its control socket.
pub const CONTROL_FD: RawFd = 3;

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

/// The steps of a child between its fork and its program, as it reports them when one fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SpawnStep {
    /// The fork itself.
    Fork,
    /// Standard input and output to /dev/null, the control socket to its number.
    Descriptors,
    /// The program.
    Exec,
}

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{step:?}: {source}")]
pub struct SpawnError {
    /// Where it failed.
    pub step: SpawnStep,
    /// What the kernel answered.
    pub source: io::Error,
}

/// Starts `program` with `control` as its descriptor 3, /dev/null as 0 and 1, our stderr as 2 and nothing else. It dies
/// with us, where the kernel allows to ask for that. Returns when the program runs.
///
/// # Errors
/// The step that failed and the kernel's answer, reported by the child through a pipe as two 32-bit numbers.
pub fn spawn(program: &Program, control: BorrowedFd<'_>) -> Result<Pid, SpawnError> {
    let failed = |step| move |error: nix::Error| SpawnError { step, source: error.into() };
    let descriptors = failed(SpawnStep::Descriptors);
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|source| SpawnError { step: SpawnStep::Descriptors, source })?;
    let (report, reporter) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(descriptors)?;
    let arguments = pointers(&program.arguments);
    let environment = pointers(&program.environment);
    // SAFETY: the child calls nothing but system calls on values that were made before the fork, then execs or exits,
    // so it touches no lock and no allocator state that another thread may have held.
    match unsafe { nix::unistd::fork() }.map_err(failed(SpawnStep::Fork))? {
        nix::unistd::ForkResult::Parent { child } => {
            drop(reporter);
            let mut message = [0; 8];
            match io::Read::read(&mut std::fs::File::from(report), &mut message) {
                Ok(8) => Err(child_error(message)),
                _ => Ok(child),
            }
        }
        nix::unistd::ForkResult::Child => {
            let (step, errno) = exec_in_child(
                program.path.as_ptr(),
                &arguments,
                &environment,
                null.as_raw_fd(),
                control.as_raw_fd(),
                reporter.as_raw_fd(),
            );
            let mut message = [0; 8];
            message[..4].copy_from_slice(&(step as u32).to_ne_bytes());
            message[4..].copy_from_slice(&errno.to_ne_bytes());
            // SAFETY: write and _exit are async-signal-safe; the buffer is 8 bytes long.
            unsafe {
                libc::write(reporter.as_raw_fd(), message.as_ptr().cast(), message.len());
                libc::_exit(127)
            }
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn child_error(message: [u8; 8]) -> SpawnError {
    let [step, errno] = [0, 4].map(|at| {
        let mut number = [0; 4];
        number.copy_from_slice(&message[at..at + 4]);
        i32::from_ne_bytes(number)
    });
    let step =
        if step == SpawnStep::Exec as i32 { SpawnStep::Exec } else { SpawnStep::Descriptors };
    SpawnError { step, source: io::Error::from_raw_os_error(errno) }
}

/// Runs in the child, between fork and exec. Returns only on failure.
fn exec_in_child(
    path: *const c_char,
    arguments: &[*const c_char],
    environment: &[*const c_char],
    null: RawFd,
    control: RawFd,
    reporter: RawFd,
) -> (SpawnStep, i32) {
    let errno = nix::errno::Errno::last_raw;
    // SAFETY: all of these are async-signal-safe system calls on integers and on pointers into vectors that outlive the
    // call; both vectors end with a null pointer. Where prctl is refused, the control socket's end tells the child.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Above what dup2 below overwrites, and closed by exec.
        let (control, reporter) = (
            libc::fcntl(control, libc::F_DUPFD_CLOEXEC, 10),
            libc::fcntl(reporter, libc::F_DUPFD_CLOEXEC, 10),
        );
        if control < 0
            || reporter < 0
            || libc::dup2(null, 0) < 0
            || libc::dup2(null, 1) < 0
            || libc::dup2(control, CONTROL_FD) < 0
        {
            return (SpawnStep::Descriptors, errno());
        }
        // What we inherited from our own parent may lack the flag.
        for descriptor in CONTROL_FD + 1..256 {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        libc::execve(path, arguments.as_ptr(), environment.as_ptr());
    }
    (SpawnStep::Exec, errno())
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

/// Hands a descriptor to the runtime, to be waited for.
///
/// # Errors
/// When it cannot be waited for.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and AsyncFd drops it last.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::other)
}
