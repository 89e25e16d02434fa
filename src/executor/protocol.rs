//! The messages between supervisor, zygote and worker.
//!
//! Both connections are stream sockets. Supervisor and zygote exchange JSON messages, each after its length in four bytes
//! (little-endian). The descriptors of a worker are attached to the order to fork it. Supervisor and worker exchange
//! frames: one byte for the type, four bytes for the length, and the payload (`frames.rs`). The supervisor trusts the
//! zygote. It trusts no frame of a worker that has read its request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::frames::push_frame;
use crate::api::collect::Collect;
use crate::api::request::Entry;
use crate::sandbox::Lockdown;
use crate::sandbox::policy::Refused;
use crate::sandbox::rlimits::Limit;

/// The first message to a zygote.
#[derive(Serialize)]
pub struct Boot<'a> {
    /// The modules of the harness: name and source.
    pub harness: &'a [(&'static str, &'static str)],
    /// The modules to import.
    pub preload: &'a [String],
    /// The bytecode archive to import them from.
    pub archive: Option<&'a Path>,
    /// How workers lock themselves down.
    pub lockdown: &'a Lockdown,
    /// The options of most runs, exactly as a worker receives them, so that it need not read them.
    pub usual_options: &'a str,
}

/// An order to a zygote.
#[derive(Serialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Fork a worker. Attached are its channel, stdout, stderr, and its Landlock ruleset, if any. How it starts is the
    /// first frame on its channel, [`Start`].
    Fork {
        /// The number of the worker, never used twice.
        worker: u64,
    },
    /// Wait for a worker that was killed, and report its end.
    Reap {
        /// The worker.
        worker: u64,
    },
}

/// How a worker starts: the first frame that it receives. It does not pass through the zygote, since later workers are
/// copies of the zygote's memory and could find the names of other scratch directories there.
#[derive(Serialize)]
pub struct Start<'a> {
    /// The uid to change to, if the worker gets its own.
    pub uid: Option<u32>,
    /// Its working directory.
    pub scratch: &'a str,
    /// The options of the tmpfs to mount there first, if any.
    pub mount: Option<String>,
    /// The resource limits to set.
    pub limits: &'a [Limit],
    /// Whether to run the warm-up scripts first, so that the request finds caches filled and pages copied.
    pub warm_up: bool,
}

impl Start<'_> {
    /// The frame with it.
    pub fn frame(&self) -> Vec<u8> {
        let text = serde_json::to_vec(self).expect("BUG: the start of a worker is plain data");
        let mut frame = Vec::new();
        push_frame(&mut frame, to_worker::START, &text);
        frame
    }
}

/// A report of a zygote.
#[derive(Debug, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// It begins to import a module of the preload.
    Importing {
        /// The name of the module.
        module: String,
    },
    /// The imports are done; the zygote accepts orders.
    Ready(ZygoteInfo),
    /// A fork failed.
    ForkFailed {
        /// The worker that was not forked.
        worker: u64,
        /// The errno.
        errno: i32,
    },
    /// A worker has ended.
    Reaped {
        /// The worker.
        worker: u64,
        /// The status, as from wait4(2).
        status: i32,
        /// CPU time, microseconds.
        cpu_us: u64,
        /// Peak resident set, bytes.
        peak_bytes: u64,
    },
}

/// What a zygote reports when it is ready.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ZygoteInfo {
    /// The version of Python.
    pub python: String,
    /// The preloaded packages and their versions.
    pub packages: BTreeMap<String, String>,
    /// The preload modules that could not be imported, and why.
    pub missing: BTreeMap<String, String>,
    /// The preload modules that left threads running.
    pub threaded: Vec<String>,
    /// The modules of the standard library.
    pub standard: BTreeSet<String>,
    /// The installed distributions and their versions.
    pub installed: BTreeMap<String, String>,
}

/// The last frame of a request: how to run the script.
#[derive(Serialize)]
pub struct RunOptions<'a> {
    /// How the script is run.
    pub entry: Entry,
    /// What to refuse before the script runs.
    pub refused: &'a Refused,
    /// Largest result as JSON, bytes.
    pub max_result_bytes: usize,
    /// Deepest nesting of the result.
    pub max_depth: usize,
    /// Which files come back besides those in `outputs/`.
    pub collect: &'a Collect,
    /// Limits on the files that come back.
    pub outputs: OutputLimits,
    /// By how much to lower resource limits before the script runs.
    pub lower: &'a [Limit],
}

/// Limits on the files that come back.
#[derive(Serialize)]
pub struct OutputLimits {
    /// Total size, bytes.
    pub max_bytes: usize,
    /// Number of files.
    pub max_files: usize,
    /// Length of a name, bytes.
    pub max_name_bytes: usize,
    /// Path parts in a name.
    pub max_parts: usize,
}

/// Types of frames to a worker.
pub mod to_worker {
    /// [`super::Start`], JSON. Only the first frame.
    pub const START: u8 = b'B';
    /// The script, UTF-8.
    pub const SCRIPT: u8 = b'S';
    /// The argument of `main`, JSON.
    pub const INPUT: u8 = b'I';
    /// What the script reads from its standard input.
    pub const STDIN: u8 = b'T';
    /// A file: two bytes for the length of the name (little-endian), the name in UTF-8, the content.
    pub const FILE: u8 = b'D';
    /// [`super::RunOptions`], JSON. It completes the request.
    pub const RUN: u8 = b'R';
}

/// Types of frames from a worker.
pub mod from_worker {
    /// The worker is locked down and waits for a request. Empty.
    pub const READY: u8 = b'R';
    /// [`super::LockdownFailure`], JSON. The worker ends.
    pub const LOCKDOWN: u8 = b'L';
    /// A file in `outputs/`, in the form of [`super::to_worker::FILE`]. The result follows.
    pub const FILE: u8 = b'D';
    /// What `main` returned, JSON.
    pub const VALUE: u8 = b'V';
    /// [`super::ScriptFailure`], JSON.
    pub const FAILURE: u8 = b'F';
}

/// A step of a worker's start, in the order in which the harness takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LockdownStep {
    /// Giving the descriptors their numbers.
    Descriptors,
    /// setsid(2).
    Session,
    /// The tmpfs of the scratch directory.
    Mount,
    /// A user namespace of its own.
    UserNamespace,
    /// Resource limits.
    Limits,
    /// A uid of its own.
    Uid,
    /// The working directory.
    Scratch,
    /// Giving up every capability.
    Capabilities,
    /// Asking the kernel to end the worker with its zygote.
    ParentDeathSignal,
    /// Becoming non-dumpable.
    NonDumpable,
    /// no_new_privs.
    NoNewPrivs,
    /// The Landlock ruleset.
    Landlock,
    /// The system call filter.
    Seccomp,
    /// Streams, environment and random numbers for the script.
    ProcessState,
    /// The directory `outputs/`.
    WorkDir,
    /// The warm-up scripts.
    WarmUp,
    /// The audit hook.
    AuditHook,
}

impl fmt::Display for LockdownStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            LockdownStep::Descriptors => "descriptors",
            LockdownStep::Session => "session",
            LockdownStep::Mount => "mount",
            LockdownStep::UserNamespace => "user_namespace",
            LockdownStep::Limits => "limits",
            LockdownStep::Uid => "uid",
            LockdownStep::Scratch => "scratch",
            LockdownStep::Capabilities => "capabilities",
            LockdownStep::ParentDeathSignal => "parent_death_signal",
            LockdownStep::NonDumpable => "non_dumpable",
            LockdownStep::NoNewPrivs => "no_new_privs",
            LockdownStep::Landlock => "landlock",
            LockdownStep::Seccomp => "seccomp",
            LockdownStep::ProcessState => "process_state",
            LockdownStep::WorkDir => "work_dir",
            LockdownStep::WarmUp => "warm_up",
            LockdownStep::AuditHook => "audit_hook",
        })
    }
}

/// A step of the lockdown failed.
#[derive(Clone, Debug, Deserialize)]
pub struct LockdownFailure {
    /// The step.
    pub step: LockdownStep,
    /// The error.
    pub error: String,
}

/// A worker's report of why there is no result.
#[derive(Debug, Deserialize)]
pub struct ScriptFailure {
    /// The kind. Only kinds that a script can cause are accepted.
    pub kind: crate::api::catalogue::Kind,
    /// One sentence for the caller.
    pub error: String,
    /// The traceback.
    pub traceback: Option<String>,
    /// The line of the script that failed.
    pub line: Option<u32>,
}
