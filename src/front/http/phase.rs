//! The phases of a connection and the timeout of each.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::handler::pace::{self, Pace};

/// An HTTP/2 connection begins with these bytes, and no HTTP/1.1 request does.
const HTTP2_PREFACE: &[u8] = b"PRI";

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// To send the head of a request.
    pub(super) head: Duration,
    /// To read a response. The grace also limits how long a client may read nothing.
    pub(super) pace: Pace,
    /// To send the next request.
    pub(super) idle: Duration,
    /// To send a request when the server shuts down. The client may be sending one at that moment.
    pub(super) last_request: Duration,
    /// To close the connection once it was told to.
    pub(super) closing: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            head: Duration::from_secs(10),
            pace: pace::CLIENT,
            // Longer than load balancers keep idle connections, so that they never use one that is being closed.
            // Google's keep them for 600 seconds:
            // <https://cloud.google.com/load-balancing/docs/https#timeout-keepalive-backends>.
            idle: Duration::from_secs(620),
            last_request: Duration::from_millis(300),
            closing: Duration::from_secs(1),
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No byte of the next request has arrived.
    Idle,
    /// The head of a request is arriving.
    Head,
    /// This many requests are being answered.
    Serving(usize),
    /// The client is not reading the response.
    WriteBlocked,
}

/// The state of a connection, shared by its stream and its requests.
pub(super) struct State {
    timeouts: Timeouts,
    phase: watch::Sender<Phase>,
    /// The responses that are being read, by the time when the client must have read more, and what it had taken when that
    /// was found, bytes.
    response_deadlines: watch::Sender<BTreeMap<(Instant, u64), u64>>,
    /// What the client has taken so far, bytes.
    taken: AtomicU64,
    responses: AtomicU64,
    http2: AtomicBool,
    /// Whether nothing has been read yet, so that the next bytes identify the protocol.
    unread: AtomicBool,
}

impl State {
    pub(super) fn new(timeouts: Timeouts) -> Arc<State> {
        Arc::new(State {
            timeouts,
            phase: watch::Sender::new(Phase::Idle),
            response_deadlines: watch::Sender::default(),
            taken: AtomicU64::new(0),
            responses: AtomicU64::new(0),
            http2: AtomicBool::new(false),
            unread: AtomicBool::new(true),
        })
    }

    /// Returns whether the connection speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// Counts a request as being answered until the guard is dropped.
    pub(super) fn begin_request(self: &Arc<State>) -> RequestGuard {
        self.phase.send_modify(|phase| {
            *phase = match *phase {
                Phase::Serving(count) => Phase::Serving(count + 1),
                Phase::Idle | Phase::Head | Phase::WriteBlocked => Phase::Serving(1),
            }
        });
        RequestGuard { state: Arc::clone(self) }
    }

    /// Sets a deadline for something that the client must read. It applies until the guard is dropped, which should happen
    /// when the last byte is handed to the kernel.
    pub(super) fn begin_response(self: &Arc<State>) -> ResponseGuard {
        let number = self.responses.fetch_add(1, Ordering::Relaxed);
        let (due, taken) = (self.timeouts.pace.begin(), self.taken.load(Ordering::Relaxed));
        self.response_deadlines.send_modify(|deadlines| {
            deadlines.insert((due, number), taken);
        });
        ResponseGuard { number, state: Arc::clone(self) }
    }

    /// Returns when the connection has been in one phase for too long.
    pub(super) async fn phase_timeout(&self) {
        let mut phase = self.phase.subscribe();
        loop {
            let timeout = match *phase.borrow_and_update() {
                Phase::Idle => self.timeouts.idle,
                Phase::Head => self.timeouts.head,
                Phase::WriteBlocked => self.timeouts.pace.grace,
                Phase::Serving(_) => Duration::MAX,
            };
            if tokio::time::timeout(timeout, phase.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Returns when a response is read more slowly than the pace allows.
    pub(super) async fn response_timeout(&self) {
        let mut deadlines = self.response_deadlines.subscribe();
        loop {
            let copy = |(key, before): (&(Instant, u64), &u64)| (*key, *before);
            let earliest = deadlines.borrow_and_update().first_key_value().map(copy);
            let Some(((due, number), before)) = earliest else {
                if deadlines.changed().await.is_err() {
                    return;
                }
                continue;
            };
            if tokio::time::timeout_at(due, deadlines.changed()).await.is_ok() {
                continue;
            }
            let taken = self.taken.load(Ordering::Relaxed);
            let next = self.timeouts.pace.after(due, taken - before);
            if next <= Instant::now() {
                return;
            }
            self.response_deadlines.send_modify(|deadlines| {
                if deadlines.remove(&(due, number)).is_some() {
                    deadlines.insert((next, number), taken);
                }
            });
        }
    }

    /// Returns when the connection has been idle for `last_request`, the time that a client gets when the server shuts
    /// down.
    pub(super) async fn last_request_timeout(&self) {
        self.idle_until(|| tokio::time::sleep(self.timeouts.last_request)).await;
    }

    /// Returns when the connection has been idle for `closing`, the time that a client gets to close it.
    pub(super) async fn closing_timeout(&self) {
        self.idle_until(|| tokio::time::sleep(self.timeouts.closing)).await;
    }

    /// Returns when a future made by `event` completes while the connection stays idle. Starts a new one each time the
    /// connection becomes idle.
    pub(super) async fn idle_until<F: Future<Output = ()>>(&self, event: impl Fn() -> F) {
        let mut phase = self.phase.subscribe();
        loop {
            if phase.wait_for(|phase| *phase == Phase::Idle).await.is_err() {
                return pending().await;
            }
            tokio::select! {
                () = event() => return,
                _ = phase.changed() => {}
            }
        }
    }

    fn change(&self, from: Phase, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let changes = *phase == from;
            if changes {
                *phase = to;
            }
            changes
        });
    }

    fn on_read(&self, bytes: &[u8]) {
        if self.unread.swap(false, Ordering::Relaxed) && bytes.starts_with(HTTP2_PREFACE) {
            self.http2.store(true, Ordering::Relaxed);
        }
        // An HTTP/2 connection also carries frames that belong to no request.
        if !self.is_http2() {
            self.change(Phase::Idle, Phase::Head);
        }
    }
}

/// A request that is being answered.
pub(super) struct RequestGuard {
    state: Arc<State>,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.state.phase.send_modify(|phase| {
            *phase = match *phase {
                Phase::Serving(count) if count > 1 => Phase::Serving(count - 1),
                _ => Phase::Idle,
            }
        });
    }
}

/// Something that the client has not read yet.
pub(super) struct ResponseGuard {
    number: u64,
    state: Arc<State>,
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        self.state.response_deadlines.send_modify(|deadlines| {
            deadlines.retain(|(_, number), _| *number != self.number);
        });
    }
}

/// A TCP stream that reports reads and blocked writes to the state of its connection.
pub(super) struct ObservedStream {
    stream: TcpStream,
    state: Arc<State>,
}

impl ObservedStream {
    pub(super) fn new(stream: TcpStream, state: Arc<State>) -> ObservedStream {
        ObservedStream { stream, state }
    }

    fn on_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(taken)) = &written {
            self.state.taken.fetch_add(*taken as u64, Ordering::Relaxed);
        }
        match written {
            Poll::Pending => self.state.change(Phase::Idle, Phase::WriteBlocked),
            Poll::Ready(_) => self.state.change(Phase::WriteBlocked, Phase::Idle),
        }
        written
    }
}

impl AsyncRead for ObservedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if buffer.filled().len() > before {
            self.state.on_read(&buffer.filled()[before..]);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for ObservedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.on_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.on_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
