//! A zygote for tests: a thread of the test that carries out orders, with shells as workers.

use std::collections::HashMap;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use mainbox_zygote::messages::{Event, Exit, FORK_ALONE, FORK_THROUGH_PYTHON, Order, Report};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use serde_json::json;

use super::frames::message;
use super::zygote::Zygote;

/// What becomes of every fork.
#[derive(Clone, Copy)]
pub(super) enum Fork {
    /// The worker is this shell script. Its standard input is the channel.
    Shell(&'static str),
    /// As [`SILENT`], but no worker is ever reported as reaped.
    NeverReaped,
    /// The channel closes before the worker is ready.
    Dies,
    /// The fork fails with this errno.
    Fails(i32),
}

/// A worker that is ready, answers a request with a line break in its script with `{}`, and waits for ever.
pub(super) const IDLE: Fork = Fork::Shell(
    "printf 'R\\000\\000\\000\\000' >&0; read line; printf 'V\\002\\000\\000\\000{}' >&0; exec sleep 60",
);

/// A worker that is ready and never answers.
pub(super) const SILENT: Fork = Fork::Shell(SILENT_SCRIPT);

const SILENT_SCRIPT: &str = "printf 'R\\000\\000\\000\\000' >&0; exec sleep 60";

/// As [`IDLE`], but the first request ends its worker. A directory remembers that; its name ends with the process id of
/// the test.
pub(super) const HICCUP: Fork = Fork::Shell(
    "printf 'R\\000\\000\\000\\000' >&0; read line; mkdir /tmp/mainbox-hiccup-$PPID 2>/dev/null && exit 3; printf 'V\\002\\000\\000\\000{}' >&0; exec sleep 60",
);

/// Starts a fake zygote that is ready. Its process id is that of a process that can be killed.
pub(super) fn start(fork: Fork) -> Arc<Zygote> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut process = Command::new("sleep");
    let process = process.arg("60").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_raw(process.id() as i32);
    let zygote = Zygote::connect(ours, pid, None).unwrap();
    std::thread::spawn(move || carry_out_orders(&theirs, fork, process));
    Arc::new(zygote)
}

fn carry_out_orders(control: &UnixStream, fork: Fork, mut process: Child) {
    let info = json!({
        "report": "ready", "python": "3.13.0", "packages": {}, "missing": {}, "threaded": [], "standard": ["os"],
        "installed": {},
    });
    let ready = message(info.to_string().as_bytes());
    let mut sender = control;
    sender.write_all(&ready).unwrap();
    let mut workers = HashMap::new();
    while let Some((order, descriptors)) = receive(control) {
        let worker = match order {
            Order::Reap(_) if matches!(fork, Fork::NeverReaped) => continue,
            Order::Reap(worker) => {
                let child: Option<Child> = workers.remove(&worker);
                let status = child.map_or(0, |mut child| child.wait().unwrap().into_raw());
                let exit = Exit { status, cpu_us: 5_000_000, peak_bytes: 0 };
                report(control, Report { worker, event: Event::Reaped(exit) });
                continue;
            }
            Order::Fork(worker) => worker,
        };
        match fork {
            Fork::Shell(_) | Fork::NeverReaped => {
                let script = if let Fork::Shell(script) = fork { script } else { SILENT_SCRIPT };
                let channel = descriptors.into_iter().next().unwrap();
                let mut shell = Command::new("sh");
                let shell =
                    shell.args(["-c", script]).stdin(Stdio::from(channel)).stdout(Stdio::null());
                let shell = shell.stderr(Stdio::null()).spawn();
                workers.insert(worker, shell.unwrap());
            }
            Fork::Dies => drop(descriptors),
            Fork::Fails(errno) => {
                report(control, Report { worker, event: Event::ForkFailed(errno) });
            }
        }
    }
    for mut worker in workers.into_values() {
        let _ = worker.kill();
        let _ = worker.wait();
    }
    let _ = process.kill();
    let _ = process.wait();
}

fn report(mut control: &UnixStream, report: Report) {
    // Fails when the test has dropped the zygote.
    let _ = control.write_all(&report.encode());
}

/// The next order, with its descriptors; `None` when the supervisor is gone.
fn receive(mut control: &UnixStream) -> Option<(Order, Vec<OwnedFd>)> {
    let mut bytes = [0; Order::BYTES];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; Order::MAX_DESCRIPTORS]);
    let mut buffer = [IoSliceMut::new(&mut bytes[..1])];
    // The descriptors come with the first byte.
    let received = recvmsg::<()>(
        control.as_raw_fd(),
        &mut buffer,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .ok()
    .filter(|received| received.bytes == 1)?;
    let descriptors = received
        .cmsgs()
        .unwrap()
        .flat_map(|attached| match attached {
            ControlMessageOwned::ScmRights(descriptors) => descriptors,
            _ => vec![],
        })
        .map(owned)
        .collect();
    // How it is to fork. A test need not wait for that before it gives an order.
    if [FORK_ALONE, FORK_THROUGH_PYTHON].contains(&bytes[0]) {
        return receive(control);
    }
    control.read_exact(&mut bytes[1..]).ok()?;
    Some((Order::decode(&bytes).unwrap(), descriptors))
}

#[allow(unsafe_code, reason = "nix returns received descriptors as numbers")]
fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for this message, and nothing else knows its number.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
