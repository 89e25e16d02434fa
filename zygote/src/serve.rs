//! The loop of a zygote: carries out orders and reaps, until it is in a worker or the supervisor is gone.

use crate::children::{Child, Children};
use crate::lockdown::{CHANNEL, Descriptors, Lockdown};
use crate::messages::{Event, Exit, Failure, Order, Policy, Report, Start, Step, frame};
use crate::numbers::{EAGAIN, ECONNRESET, EPIPE, EPROTO};
use crate::sys::{self, Errno, Output, Ready};

/// The control socket to the supervisor, in a zygote.
const CONTROL: i32 = 3;

/// What the zygote remembers. All zero at first.
#[derive(Debug)]
#[repr(C)]
pub struct Memory {
    /// In a worker: its [`Start`]. Python reads the path of its scratch directory there.
    pub start: [u8; Start::MAX_BYTES],
    /// The descriptor that reports ended children, or zero before it is opened.
    signals: i32,
    children: Children,
}

/// How a zygote forks.
#[derive(Clone, Copy)]
pub struct Fork {
    /// fork(3) of the C library. It keeps the state of that library right and calls what libraries have registered with
    /// pthread_atfork(3).
    pub fork: extern "C" fn() -> i32,
    /// __errno_location(3) of the same library.
    pub errno: extern "C" fn() -> *const i32,
    /// What Python does around a fork, if anything that was imported depends on it.
    pub hooks: Option<Hooks>,
}

/// Functions of the C API of Python: <https://docs.python.org/3/c-api/sys.html#c.PyOS_BeforeFork>.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// PyOS_BeforeFork.
    pub before: extern "C" fn(),
    /// PyOS_AfterFork_Parent.
    pub after_in_parent: extern "C" fn(),
    /// PyOS_AfterFork_Child.
    pub after_in_child: extern "C" fn(),
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// No order came for the time that Python wanted.
    Quiet,
    /// This process is a worker and locked down.
    Worker {
        /// [`Start::warm_up`].
        warm_up: bool,
    },
    /// The supervisor is gone.
    Gone,
}

/// Carries out orders. If `quiet_ms` is not negative, it returns once no order has come and no worker has ended for that
/// many milliseconds. Signals stay blocked.
///
/// # Errors
/// When the control socket fails, or the supervisor sends what is no order.
pub fn serve(
    memory: &mut Memory,
    policy: &mut Policy<'_>,
    output: &Output,
    fork: Fork,
    quiet_ms: i32,
) -> Result<End, Errno> {
    match carry_out_orders(memory, policy, output, fork, quiet_ms) {
        // It left without receiving a report, or while one was being sent.
        Err(ECONNRESET | EPIPE) => Ok(End::Gone),
        result => result,
    }
}

fn carry_out_orders(
    memory: &mut Memory,
    policy: &mut Policy<'_>,
    output: &Output,
    fork: Fork,
    quiet_ms: i32,
) -> Result<End, Errno> {
    sys::block_signals()?;
    if memory.signals == 0 {
        memory.signals = sys::open_child_signals()?;
    }
    loop {
        let ready = sys::wait_for(CONTROL, memory.signals, quiet_ms)?;
        if ready == Ready::NEITHER {
            return Ok(End::Quiet);
        }
        if ready.second {
            sys::take_signals(memory.signals);
            reap(&mut memory.children)?;
        }
        if ready.first {
            let mut bytes = [0; Order::BYTES];
            let (length, descriptors) = sys::receive(CONTROL, &mut bytes)?;
            if length == 0 {
                return Ok(End::Gone);
            }
            // The supervisor sends an order in one call, and the kernel does not split so short a message.
            let order = Order::decode(&bytes).filter(|_| length == Order::BYTES).ok_or(EPROTO)?;
            match order {
                Order::Reap(worker) if memory.children.release(worker) => {
                    reap(&mut memory.children)?
                }
                // Its fork had failed.
                Order::Reap(worker) => report(worker, Event::Reaped(Exit::default()))?,
                Order::Fork(worker) => {
                    let attached = attached(&descriptors).ok_or(EPROTO)?;
                    if let Some(warm_up) =
                        fork_worker(memory, policy, output, fork, worker, attached)?
                    {
                        return Ok(End::Worker { warm_up });
                    }
                    descriptors.iter().flatten().for_each(|descriptor| sys::close(*descriptor));
                }
            }
        }
    }
}

/// Names the descriptors that were attached to an order.
fn attached(descriptors: &[Option<i32>; Order::MAX_DESCRIPTORS]) -> Option<Descriptors> {
    match *descriptors {
        [Some(channel), Some(stdout), Some(stderr), Some(output), ruleset] => {
            Some(Descriptors { channel, stdout, stderr, output, ruleset })
        }
        _ => None,
    }
}

/// Forks a worker. Returns `None` in the zygote, and in the worker whether it is to warm up.
fn fork_worker(
    memory: &mut Memory,
    policy: &mut Policy<'_>,
    output: &Output,
    fork: Fork,
    worker: u64,
    descriptors: Descriptors,
) -> Result<Option<bool>, Errno> {
    if memory.children.is_full() {
        return report(worker, Event::ForkFailed(EAGAIN.0)).map(|()| None);
    }
    let zygote = sys::process_id();
    if let Some(hooks) = fork.hooks {
        (hooks.before)();
    }
    let child = sys::fork(fork);
    if child == Ok(0) {
        let warm_up = lock_down(&mut memory.start, policy, output, descriptors, zygote);
        if let Some(hooks) = fork.hooks {
            (hooks.after_in_child)();
        }
        return Ok(Some(warm_up));
    }
    if let Some(hooks) = fork.hooks {
        (hooks.after_in_parent)();
    }
    match child {
        Ok(pid) => memory.children.add(worker, pid),
        Err(Errno(errno)) => report(worker, Event::ForkFailed(errno))?,
    }
    Ok(None)
}

/// Locks a new worker down. Returns whether it is to warm up. Ends the process if a step fails.
fn lock_down(
    bytes: &mut [u8; Start::MAX_BYTES],
    policy: &mut Policy<'_>,
    output: &Output,
    descriptors: Descriptors,
    zygote: i32,
) -> bool {
    let channel = descriptors.channel;
    sys::allow_signals();
    let Some(start) = read_start(channel, bytes) else {
        fail(channel, Failure { step: Step::Start, errno: EPROTO.0 })
    };
    let mut lockdown = Lockdown { policy, start, descriptors, output, zygote };
    match lockdown.carry_out() {
        Ok(()) => start.warm_up,
        // It has its place then, or still its old number if that is what failed.
        Err(failure @ Failure { step: Step::Output | Step::Descriptors, .. }) => {
            fail(channel, failure)
        }
        Err(failure) => fail(CHANNEL, failure),
    }
}

/// Reads the first frame. Ends the process if the supervisor is gone.
fn read_start(channel: i32, bytes: &mut [u8; Start::MAX_BYTES]) -> Option<Start<'_>> {
    let mut header = [0; frame::HEADER_BYTES];
    read(channel, &mut header);
    let [frame::START, length @ ..] = header else { return None };
    let payload = bytes.get_mut(..u32::from_le_bytes(length) as usize)?;
    read(channel, payload);
    Start::decode(payload)
}

fn read(channel: i32, buffer: &mut [u8]) {
    if sys::read_exactly(channel, buffer).is_none() {
        sys::exit(0);
    }
}

/// Reports a failure to the supervisor, and ends the process.
fn fail(channel: i32, failure: Failure) -> ! {
    let mut frame = [0; frame::HEADER_BYTES + Failure::BYTES];
    let [a, b, c, d] = (Failure::BYTES as u32).to_le_bytes();
    let fields = [frame::FAILURE, a, b, c, d].into_iter().chain(failure.encode());
    frame.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    // Fails only if the supervisor is gone.
    let _ = sys::send(channel, &frame);
    sys::exit(1)
}

/// Reaps dead workers that the supervisor has released.
fn reap(children: &mut Children) -> Result<(), Errno> {
    let mut result = Ok(());
    children.remove_released(|Child { worker, pid, .. }| {
        let reaped = sys::reap(pid).and_then(|exit| match exit {
            Some(exit) => report(worker, Event::Reaped(exit)).map(|()| true),
            None => Ok(false),
        });
        reaped.unwrap_or_else(|error| {
            result = Err(error);
            false
        })
    });
    result
}

/// Reports what became of the heap.
pub(crate) fn report_heap(moved: usize, result: Result<(), Errno>) -> Result<(), Errno> {
    report(
        0,
        Event::HeapMoved { bytes: moved as u64, errno: result.err().map_or(0, |error| error.0) },
    )
}

fn report(worker: u64, event: Event) -> Result<(), Errno> {
    sys::send(CONTROL, &Report { worker, event }.encode())
}
