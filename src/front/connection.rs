//! One connection: what it is doing, how long it may take over that, and how it is brought to an end.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::access_log::Access;
use crate::budget::until_gone;
use crate::client::Client;
use crate::handler::Handler;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// How fast a client must take an answer on the whole, bytes a second, beyond the time that it may take none of it. One
/// that reads a byte now and then, or by HTTP/2 gives no window, would hold memory that others need.
const LEAST_RATE: u64 = 64 * 1024;
/// How long a connection may wait for its next request: longer than load balancers keep theirs, so that they never use
/// one that we are just closing. Google's keep them for 600 seconds:
/// <https://cloud.google.com/load-balancing/docs/https#timeout-keepalive-backends>.
const IDLE_TIMEOUT: Duration = Duration::from_secs(620);
/// How long a connection without a request stays when the server ends: its client may just be sending one.
const LAST_CALL: Duration = Duration::from_millis(300);
/// What HTTP/2 connections begin with, and no HTTP/1.1 request does.
const HTTP2_PREFACE: &[u8] = b"PRI";

/// What the connections of a server share.
pub(super) struct Shared {
    pub(super) server: auto::Builder<TokioExecutor>,
    pub(super) handler: Handler,
    /// Whether the server is ending.
    pub(super) draining: watch::Sender<bool>,
    /// Asks one connection without a request to make room for another.
    pub(super) crowded: Notify,
}

/// Serves `stream` until either side ends it.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let peer = stream.peer_addr().ok().map(|address| address.ip());
    let state = Arc::new(State::default());
    let observed = Observed { stream, state: Arc::clone(&state) };
    let service = service_fn(|mut request: Request<Incoming>| {
        let serving = Serving::begin(&state);
        let shared = Arc::clone(&shared);
        let proxies = shared.handler.config().proxies;
        let client = Client::of(request.headers(), peer, proxies);
        let access = Access::of(&request, client);
        if let Some(client) = client {
            request.extensions_mut().insert(client);
        }
        async move {
            let response = shared.handler.handle(request).await;
            access.log(&response);
            let mut response = taken_in_time(response, &serving.state);
            if *shared.draining.borrow() && !serving.state.http2.load(Ordering::Relaxed) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(shared.server.serve_connection(TokioIo::new(observed), service));
    let mut ending = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "connection");
                }
                return;
            }
            () = overdue(&state) => return,
            () = untaken(&state) => return,
            () = told_to_end(&state, &shared), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing: no byte of a request has come.
    Idle,
    /// The head of a request is coming.
    Head,
    /// So many requests are being answered.
    Serving(usize),
    /// The client takes nothing of our answer.
    Stuck,
}

struct State {
    phase: watch::Sender<Phase>,
    /// Until when each answer must be taken, the first first.
    answers: watch::Sender<BTreeSet<(Instant, u64)>>,
    answered: AtomicU64,
    http2: AtomicBool,
    /// The first bytes, while they may still be those of HTTP/2.
    beginning: AtomicBool,
}

impl Default for State {
    fn default() -> State {
        State {
            phase: watch::Sender::new(Phase::Idle),
            answers: watch::Sender::default(),
            answered: AtomicU64::new(0),
            http2: AtomicBool::new(false),
            beginning: AtomicBool::new(true),
        }
    }
}

impl State {
    fn change(&self, from: Phase, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let changes = *phase == from;
            if changes {
                *phase = to;
            }
            changes
        });
    }

    fn read(&self, bytes: &[u8]) {
        if self.beginning.swap(false, Ordering::Relaxed) && bytes.starts_with(HTTP2_PREFACE) {
            self.http2.store(true, Ordering::Relaxed);
        }
        // Between the requests of HTTP/2 there are frames of the connection's own.
        if !self.http2.load(Ordering::Relaxed) {
            self.change(Phase::Idle, Phase::Head);
        }
    }
}

/// Counts a request as being answered, until it is dropped.
struct Serving {
    state: Arc<State>,
}

impl Serving {
    fn begin(state: &Arc<State>) -> Serving {
        state.phase.send_modify(|phase| {
            *phase = match *phase {
                Phase::Serving(count) => Phase::Serving(count + 1),
                Phase::Idle | Phase::Head | Phase::Stuck => Phase::Serving(1),
            }
        });
        Serving { state: Arc::clone(state) }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.state.phase.send_modify(|phase| {
            *phase = match *phase {
                Phase::Serving(count) if count > 1 => Phase::Serving(count - 1),
                _ => Phase::Idle,
            }
        });
    }
}

/// Ends when the connection has been at something for too long.
async fn overdue(state: &State) {
    let mut phase = state.phase.subscribe();
    loop {
        let patience = match *phase.borrow_and_update() {
            Phase::Idle => IDLE_TIMEOUT,
            Phase::Head => HEAD_TIMEOUT,
            Phase::Stuck => WRITE_TIMEOUT,
            Phase::Serving(_) => Duration::MAX,
        };
        if tokio::time::timeout(patience, phase.changed()).await.is_err() {
            return;
        }
    }
}

/// Ends when an answer has not been taken in time.
async fn untaken(state: &State) {
    let mut answers = state.answers.subscribe();
    loop {
        let first = answers.borrow_and_update().first().map(|(end, _)| *end);
        let in_time = match first {
            Some(end) => tokio::time::timeout_at(end, answers.changed()).await.is_ok(),
            None => answers.changed().await.is_ok(),
        };
        if !in_time {
            return;
        }
    }
}

/// The same answer, of which the connection knows until it is gone: handed to the kernel to its last byte.
fn taken_in_time(response: Response<Full<Bytes>>, state: &Arc<State>) -> Response<Full<Bytes>> {
    let length = response.body().size_hint().exact().unwrap_or_default();
    let patience = WRITE_TIMEOUT + Duration::from_secs(length / LEAST_RATE);
    let number = state.answered.fetch_add(1, Ordering::Relaxed);
    let key = (Instant::now() + patience, number);
    state.answers.send_modify(|answers| {
        answers.insert(key);
    });
    let untaken = Untaken { key, state: Arc::clone(state) };
    response.map(|body| until_gone(body, untaken))
}

/// An answer that is not taken yet.
struct Untaken {
    key: (Instant, u64),
    state: Arc<State>,
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.state.answers.send_modify(|answers| {
            answers.remove(&self.key);
        });
    }
}

/// Ends when the connection should take no further request: the server ends, or somebody else needs the place more.
async fn told_to_end(state: &State, shared: &Shared) {
    let draining = async {
        // Fails only when the sender is gone, which we share.
        let _ = shared.draining.subscribe().wait_for(|draining| *draining).await;
        if !state.http2.load(Ordering::Relaxed) {
            idle_until(state, || tokio::time::sleep(LAST_CALL)).await;
        }
    };
    tokio::select! {
        () = draining => {}
        () = idle_until(state, || shared.crowded.notified()) => {}
    }
}

/// Ends when what `happens` gives has ended while the connection was without a request.
async fn idle_until<F: Future<Output = ()>>(state: &State, happens: impl Fn() -> F) {
    let mut phase = state.phase.subscribe();
    loop {
        if phase.wait_for(|phase| *phase == Phase::Idle).await.is_err() {
            return pending().await;
        }
        tokio::select! {
            () = happens() => return,
            _ = phase.changed() => {}
        }
    }
}

/// A stream that tells what comes and goes.
struct Observed {
    stream: TcpStream,
    state: Arc<State>,
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if buffer.filled().len() > before {
            self.state.read(&buffer.filled()[before..]);
        }
        Poll::Ready(read)
    }
}

impl Observed {
    /// Tells whether the client takes what we write.
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => self.state.change(Phase::Idle, Phase::Stuck),
            Poll::Ready(_) => self.state.change(Phase::Stuck, Phase::Idle),
        }
        written
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(written)
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
