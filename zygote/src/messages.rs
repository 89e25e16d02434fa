//! What supervisor, zygote and worker send each other. Numbers are little-endian, since both architectures are.

use core::ffi::CStr;

/// Types of frames to a worker that starts, and from it. A frame is its type, the length of its payload in four bytes, and
/// its payload.
pub mod frame {
    /// The size of the type and the length, bytes.
    pub const HEADER_BYTES: usize = 5;
    /// [`Start`](super::Start). Only the first frame.
    pub const START: u8 = b'B';
    /// [`Failure`](super::Failure): a step of the lockdown failed. The worker ends.
    pub const FAILURE: u8 = b'E';
}

/// What the supervisor sends a zygote with a single thread, before its first order: it can fork without Python.
pub const FORK_ALONE: u8 = b'A';
/// What it sends to any other zygote: each fork must also run what Python runs at a fork, since the other threads do not
/// exist in a worker.
pub const FORK_THROUGH_PYTHON: u8 = b'P';

/// The size of the memory in which a worker keeps what it has printed and not written yet, bytes. It is a file that the
/// supervisor makes and attaches to the order. All that is printed comes first, and the rest is zero, except for a header
/// at the end.
pub const OUTPUT_BYTES: usize = 64 * 1024;
/// The size of that header, bytes: two numbers of 8 bytes. They are how much of the text is being written to the pipe, and
/// how much was written before.
pub const OUTPUT_HEADER_BYTES: usize = 16;

/// An order of the supervisor to a zygote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Fork the worker with this number, which is never used twice. Attached are its channel, stdout, stderr, the memory
    /// for its output and, if there is one, its Landlock ruleset. How it starts is the first frame on its channel, [`Start`].
    Fork(u64),
    /// Wait for this worker, which was killed, and report its end.
    Reap(u64),
}

impl Order {
    /// Size of an order, bytes.
    pub const BYTES: usize = 9;
    /// The most descriptors that are attached to an order.
    pub const MAX_DESCRIPTORS: usize = 5;

    /// The order as it is sent.
    pub fn encode(self) -> [u8; Order::BYTES] {
        let (kind, [a, b, c, d, e, f, g, h]) = match self {
            Order::Fork(worker) => (b'F', worker.to_le_bytes()),
            Order::Reap(worker) => (b'R', worker.to_le_bytes()),
        };
        [kind, a, b, c, d, e, f, g, h]
    }

    /// The order that was sent as `bytes`; `None` if it is malformed.
    pub fn decode(bytes: &[u8; Order::BYTES]) -> Option<Order> {
        let [kind, worker @ ..] = *bytes;
        let worker = u64::from_le_bytes(worker);
        match kind {
            b'F' => Some(Order::Fork(worker)),
            b'R' => Some(Order::Reap(worker)),
            _ => None,
        }
    }
}

/// What a zygote reports about a worker, or about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The worker; zero if it is about the zygote.
    pub worker: u64,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The zygote has moved memory into files. Forks are cheaper from now on.
    HeapMoved {
        /// How much, bytes.
        bytes: u64,
        /// Why it did not move all that it could; zero if it did.
        errno: i32,
    },
    /// It could not be forked, for the reason that is this errno.
    ForkFailed(i32),
    /// It was reaped.
    Reaped(Exit),
}

/// How a worker ended. All zero if it never existed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The status, as from wait4(2).
    pub status: i32,
    /// CPU time, microseconds.
    pub cpu_us: u64,
    /// Peak resident set, bytes.
    pub peak_bytes: u64,
}

impl Report {
    /// Size of a report, bytes.
    pub const BYTES: usize = 29;

    /// The report as it is sent.
    pub fn encode(self) -> [u8; Report::BYTES] {
        let (kind, exit) = match self.event {
            Event::HeapMoved { bytes, errno } => {
                (b'H', Exit { status: errno, peak_bytes: bytes, ..Exit::default() })
            }
            Event::ForkFailed(errno) => (b'F', Exit { status: errno, ..Exit::default() }),
            Event::Reaped(exit) => (b'R', exit),
        };
        let mut bytes = [0; Report::BYTES];
        let fields = [kind]
            .into_iter()
            .chain(self.worker.to_le_bytes())
            .chain(exit.status.to_le_bytes())
            .chain(exit.cpu_us.to_le_bytes())
            .chain(exit.peak_bytes.to_le_bytes());
        for (byte, field) in bytes.iter_mut().zip(fields) {
            *byte = field;
        }
        bytes
    }

    /// The report that was sent as `bytes`; `None` if it is malformed.
    pub fn decode(bytes: &[u8; Report::BYTES]) -> Option<Report> {
        let mut rest = Reader(bytes);
        let kind = rest.byte()?;
        let worker = rest.long()?;
        let exit =
            Exit { status: rest.int()? as i32, cpu_us: rest.long()?, peak_bytes: rest.long()? };
        let event = match kind {
            b'H' => Event::HeapMoved { bytes: exit.peak_bytes, errno: exit.status },
            b'F' => Event::ForkFailed(exit.status),
            b'R' => Event::Reaped(exit),
            _ => return None,
        };
        Some(Report { worker, event })
    }
}

/// How a worker starts: the first frame that it receives. It does not pass through the zygote, since later workers are
/// copies of the zygote's memory and could find the names of other scratch directories there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start<'a> {
    /// The uid to change to, if the worker gets its own.
    pub uid: Option<u32>,
    /// Whether to run the warm-up scripts first, so that the request finds caches filled and pages copied.
    pub warm_up: bool,
    /// Its working directory.
    pub scratch: &'a CStr,
    /// The options of the tmpfs to mount there first, if any.
    pub mount: Option<&'a CStr>,
    /// Whether a Landlock ruleset is attached to the order.
    pub has_ruleset: bool,
    /// The resource limits to set.
    pub limits: &'a [EncodedLimit],
}

/// A resource limit, as for setrlimit(2). The unit depends on the resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The kernel's number for the resource.
    pub resource: u32,
    /// The limit that the kernel enforces.
    pub soft: u64,
    /// The limit up to which the worker may raise the soft limit.
    pub hard: u64,
}

/// A limit as it is sent.
pub type EncodedLimit = [u8; 20];

const WARM_UP: u8 = 1;
const HAS_UID: u8 = 2;
const HAS_MOUNT: u8 = 4;
const HAS_RULESET: u8 = 8;

impl<'a> Start<'a> {
    /// The longest start, bytes. A path has at most 4096.
    pub const MAX_BYTES: usize = 8192;

    /// Appends the start as it is sent to `bytes`. The path comes first: Python reads it in place.
    pub fn encode(&self, bytes: &mut impl Extend<u8>) {
        for text in [self.scratch, self.mount.unwrap_or_default()] {
            bytes.extend(text.to_bytes_with_nul().iter().copied());
        }
        let flag = |is: bool, flag| if is { flag } else { 0 };
        bytes.extend([flag(self.warm_up, WARM_UP)
            | flag(self.uid.is_some(), HAS_UID)
            | flag(self.mount.is_some(), HAS_MOUNT)
            | flag(self.has_ruleset, HAS_RULESET)]);
        bytes.extend(self.uid.unwrap_or(0).to_le_bytes());
        bytes.extend(self.limits.iter().copied().flatten());
    }

    /// The start that was sent as `bytes`; `None` if it is malformed.
    pub fn decode(bytes: &'a [u8]) -> Option<Start<'a>> {
        let mut rest = Reader(bytes);
        let (scratch, mount) = (rest.text()?, rest.text()?);
        let (flags, uid) = (rest.byte()?, rest.int()?);
        let (limits, []) = rest.0.as_chunks() else { return None };
        Some(Start {
            uid: (flags & HAS_UID != 0).then_some(uid),
            warm_up: flags & WARM_UP != 0,
            scratch,
            mount: (flags & HAS_MOUNT != 0).then_some(mount),
            has_ruleset: flags & HAS_RULESET != 0,
            limits,
        })
    }
}

impl Limit {
    /// The limit as it is sent.
    pub fn encode(self) -> EncodedLimit {
        let [a, b, c, d] = self.resource.to_le_bytes();
        let [e, f, g, h, i, j, k, l] = self.soft.to_le_bytes();
        let [m, n, o, p, q, r, s, t] = self.hard.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t]
    }

    /// The limit that was sent as `bytes`.
    pub fn decode(bytes: EncodedLimit) -> Limit {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t] = bytes;
        Limit {
            resource: u32::from_le_bytes([a, b, c, d]),
            soft: u64::from_le_bytes([e, f, g, h, i, j, k, l]),
            hard: u64::from_le_bytes([m, n, o, p, q, r, s, t]),
        }
    }
}

/// What is the same for all workers of a zygote.
#[derive(Debug, PartialEq, Eq)]
pub struct Policy<'a> {
    /// Whether prctl(2) works, so that workers can set no_new_privs, become non-dumpable and drop capabilities.
    pub prctl: bool,
    /// Whether workers enter a user namespace of their own.
    pub user_namespace: bool,
    /// The number in the filter that stands for the process id of the worker.
    pub own_process: u32,
    /// The seccomp filter, as instructions in the format of the kernel (`struct sock_filter`). Empty if there is none.
    pub filter: &'a mut [Instruction],
}

/// An instruction of a seccomp filter: `struct sock_filter` of linux/filter.h.
pub type Instruction = [u8; 8];

const PRCTL: u8 = 1;
const USER_NAMESPACE: u8 = 2;

impl<'a> Policy<'a> {
    /// Appends the policy as it is sent to `bytes`.
    pub fn encode(&self, bytes: &mut impl Extend<u8>) {
        let flag = |is: bool, flag| if is { flag } else { 0 };
        bytes.extend([flag(self.prctl, PRCTL) | flag(self.user_namespace, USER_NAMESPACE)]);
        bytes.extend(self.own_process.to_le_bytes());
        bytes.extend(self.filter.iter().copied().flatten());
    }

    /// The policy that was sent as `bytes`; `None` if it is malformed.
    pub fn decode(bytes: &'a mut [u8]) -> Option<Policy<'a>> {
        let (head, rest) = bytes.split_first_chunk_mut::<5>()?;
        let [flags, own_process @ ..] = *head;
        let (filter, []) = rest.as_chunks_mut() else { return None };
        Some(Policy {
            prctl: flags & PRCTL != 0,
            user_namespace: flags & USER_NAMESPACE != 0,
            own_process: u32::from_le_bytes(own_process),
            filter,
        })
    }
}

/// A step of a lockdown failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// The reason.
    pub errno: i32,
}

impl Failure {
    /// Size of a failure, bytes.
    pub const BYTES: usize = 5;

    /// The failure as it is sent.
    pub fn encode(self) -> [u8; Failure::BYTES] {
        let [a, b, c, d] = self.errno.to_le_bytes();
        [self.step as u8, a, b, c, d]
    }

    /// The failure that was sent as `bytes`; `None` if it is malformed.
    pub fn decode(bytes: &[u8; Failure::BYTES]) -> Option<Failure> {
        let [number, errno @ ..] = *bytes;
        let step = Step::ALL.into_iter().find(|step| *step as u8 == number)?;
        Some(Failure { step, errno: i32::from_le_bytes(errno) })
    }
}

/// A step of a lockdown. The numbers are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Reading [`Start`].
    Start,
    /// Mapping the memory for its output.
    Output,
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
}

impl Step {
    /// Every step, in the order in which a worker takes them.
    pub const ALL: [Step; 15] = [
        Step::Start,
        Step::Output,
        Step::Descriptors,
        Step::Session,
        Step::Mount,
        Step::UserNamespace,
        Step::Limits,
        Step::Uid,
        Step::Scratch,
        Step::Capabilities,
        Step::ParentDeathSignal,
        Step::NonDumpable,
        Step::NoNewPrivs,
        Step::Landlock,
        Step::Seccomp,
    ];

    /// The name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Step::Start => "start",
            Step::Output => "output",
            Step::Descriptors => "descriptors",
            Step::Session => "session",
            Step::Mount => "mount",
            Step::UserNamespace => "user_namespace",
            Step::Limits => "limits",
            Step::Uid => "uid",
            Step::Scratch => "scratch",
            Step::Capabilities => "capabilities",
            Step::ParentDeathSignal => "parent_death_signal",
            Step::NonDumpable => "non_dumpable",
            Step::NoNewPrivs => "no_new_privs",
            Step::Landlock => "landlock",
            Step::Seccomp => "seccomp",
        }
    }
}

/// Reads a message from its beginning.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn chunk<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*chunk)
    }

    fn byte(&mut self) -> Option<u8> {
        self.chunk().map(|[byte]| byte)
    }

    fn int(&mut self) -> Option<u32> {
        self.chunk().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.chunk().map(u64::from_le_bytes)
    }

    /// A text up to and with its NUL.
    fn text(&mut self) -> Option<&'a CStr> {
        let (text, rest) = crate::sys::split_text(self.0)?;
        self.0 = rest;
        Some(text)
    }
}

#[cfg(test)]
mod tests;
