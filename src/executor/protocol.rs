//! The messages between supervisor, zygote and worker.
//!
//! Both connections are stream sockets. While a zygote imports, the messages are JSON, each after its length in four bytes
//! (little-endian): [`Boot`] and [`Progress`]. One byte then tells the zygote how to fork, and the rest are
//! [`Order`](mainbox_zygote::messages::Order) and [`Report`](mainbox_zygote::messages::Report), which have a fixed size.
//! The descriptors of a worker are attached to the order to fork it. Supervisor and worker exchange frames: one byte for
//! the type, four bytes for the length, and the payload (`frames.rs`). The supervisor trusts the zygote. It trusts no
//! frame of a worker that has read its request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mainbox_zygote::heap::Arenas;
use mainbox_zygote::messages::{OUTPUT_BYTES, OUTPUT_HEADER_BYTES, Start};
use mainbox_zygote::serve::Memory;
use serde::{Deserialize, Serialize};

use super::frames::push_frame;
use crate::api::collect::Collect;
use crate::api::request::Entry;
use crate::sandbox::policy::Refused;
use crate::sandbox::rlimits::Limit;
use crate::sandbox::{Lockdown, Sandbox};

/// The first message to a zygote.
#[derive(Serialize)]
pub struct Boot<'a> {
    /// The modules of the harness: name and source.
    pub harness: &'a [(&'static str, &'static str)],
    /// The bytecode archive that may hold their code.
    pub harness_archive: Option<&'a Path>,
    /// Their code as [`Progress::Compiled`] had it at an earlier start, in base64; empty if there is none yet. Absent if
    /// it is not kept.
    pub harness_cache: Option<String>,
    /// The modules to import.
    pub preload: &'a [String],
    /// The bytecode archive to import them from.
    pub archive: Option<&'a Path>,
    /// What the zygote must know of the sandbox.
    pub lockdown: &'a Lockdown,
    /// What runs in the zygote after its imports.
    pub native: Native,
    /// The options of most runs, exactly as a worker receives them, so that it need not read them.
    pub usual_options: &'a str,
}

/// The machine code of the loop and of the lockdown: the package `zygote/`.
#[derive(Serialize)]
pub struct Native {
    /// The code, in base64.
    code: String,
    /// The offsets of the functions in it that Python calls: that of the loop, those that allocate and free arenas, and
    /// those that make the JSON of long results.
    entry: usize,
    allocate_arena: usize,
    free_arena: usize,
    json_numbers: usize,
    json_string: usize,
    /// How much memory the loop needs.
    memory_bytes: usize,
    /// How much memory for the output of a worker there is, in front of its header.
    output_bytes: usize,
    /// How much memory the table of arenas needs.
    arenas_bytes: usize,
    /// The number of memfd_create(2), which some builds of Python do not have as a function.
    memfd_create: i64,
    /// [`Policy`](mainbox_zygote::messages::Policy), in base64.
    policy: String,
}

impl Native {
    /// The code with the policy of these workers.
    pub fn new(sandbox: &Sandbox) -> Native {
        let mut policy = Vec::new();
        sandbox.policy(&mut sandbox.filter()).encode(&mut policy);
        Native {
            code: BASE64_STANDARD.encode(include_bytes!(concat!(env!("OUT_DIR"), "/zygote.code"))),
            entry: offset(env!("OFFSET_OF_mainbox_zygote")),
            allocate_arena: offset(env!("OFFSET_OF_mainbox_allocate_arena")),
            free_arena: offset(env!("OFFSET_OF_mainbox_free_arena")),
            json_numbers: offset(env!("OFFSET_OF_mainbox_json_numbers")),
            json_string: offset(env!("OFFSET_OF_mainbox_json_string")),
            memory_bytes: size_of::<Memory>(),
            output_bytes: OUTPUT_BYTES - OUTPUT_HEADER_BYTES,
            arenas_bytes: size_of::<Arenas>(),
            memfd_create: libc::SYS_memfd_create,
            policy: BASE64_STANDARD.encode(&policy),
        }
    }
}

fn offset(number: &str) -> usize {
    number.parse().expect("BUG: the build script writes a number")
}

/// The frame with the start of a worker.
pub fn start_frame(start: &Start<'_>) -> Vec<u8> {
    let (mut payload, mut frame) = (Vec::new(), Vec::new());
    start.encode(&mut payload);
    push_frame(&mut frame, to_worker::START, &payload);
    frame
}

/// A report of a zygote while it imports.
#[derive(Debug, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Progress {
    /// It had to compile modules of the harness.
    Compiled {
        /// The code of all of them for the next start, in base64.
        code: String,
    },
    /// It begins to import a module of the preload.
    Importing {
        /// The name of the module.
        module: String,
    },
    /// The imports are done; the zygote accepts orders, and all that it reports from now on are workers.
    Ready(ZygoteInfo),
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
    /// Whether someone follows what the script prints while it runs.
    pub live: bool,
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
    /// [`Start`](mainbox_zygote::messages::Start). Only the first frame.
    pub const START: u8 = mainbox_zygote::messages::frame::START;
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
    /// [`Failure`](mainbox_zygote::messages::Failure): a step of the lockdown failed. The worker ends.
    pub const LOCKDOWN: u8 = mainbox_zygote::messages::frame::FAILURE;
    /// [`super::NotReady`], JSON. The worker ends.
    pub const NOT_READY: u8 = b'L';
    /// A file in `outputs/`, in the form of [`super::to_worker::FILE`]. The result follows.
    pub const FILE: u8 = b'D';
    /// What `main` returned, JSON.
    pub const VALUE: u8 = b'V';
    /// [`super::ScriptFailure`], JSON.
    pub const FAILURE: u8 = b'F';
}

/// A step of a worker's start after its lockdown failed.
#[derive(Clone, Debug, Deserialize)]
pub struct NotReady {
    /// The step.
    pub step: PreparationStep,
    /// The error.
    pub error: String,
}

/// A step of a worker's start after its lockdown, in the order in which the harness takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PreparationStep {
    /// Streams, environment and random numbers for the script.
    ProcessState,
    /// The directory `outputs/`.
    WorkDir,
    /// The warm-up scripts.
    WarmUp,
    /// The audit hook.
    AuditHook,
}

impl fmt::Display for PreparationStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            PreparationStep::ProcessState => "process_state",
            PreparationStep::WorkDir => "work_dir",
            PreparationStep::WarmUp => "warm_up",
            PreparationStep::AuditHook => "audit_hook",
        })
    }
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
