//! The HTTP front: HTTP/1.1 with keep-alive and h2c on one port.

use std::io;
use std::net::TcpListener as StandardListener;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::connection::{self, Shared};
use crate::handler::Handler;

/// Connections at once, where there are descriptors for them. Further ones wait in the kernel until one of them ends, and
/// one without a request is asked to.
pub const MAX_CONNECTIONS: usize = 1000;
/// Descriptors that are kept for everything else: each worker takes four, the runtime and its zygotes a few.
const KEPT_DESCRIPTORS: u64 = 256;
/// How long requests in flight may take once a shutdown has begun. Cloud Run ends us after 10 seconds:
/// <https://cloud.google.com/run/docs/container-contract#instance-shutdown>.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// Between two signs of life that are asked of an HTTP/2 client.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// After a failed accept: descriptors come back when connections close.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The port is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("PORT {port} cannot be served: {source}")]
pub struct ListenError {
    port: u16,
    source: io::Error,
}

/// Listens on `port` of all addresses; on a free one when it is 0. From then on clients can connect, and wait for
/// [`serve`].
///
/// # Errors
/// When the port is taken or not ours to take.
pub fn listen(port: u16) -> Result<StandardListener, ListenError> {
    let failed = |source| ListenError { port, source };
    let listener = StandardListener::bind(("0.0.0.0", port)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Serves on `listener` until `shutdown`, then answers whatever was sent by then, for at most 8 seconds.
///
/// # Errors
/// When the runtime cannot wait for the listener.
pub async fn serve(
    listener: StandardListener,
    handler: Handler,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    tracing::info!(address = listener.local_addr()?.to_string(), "serving");
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http2().timer(TokioTimer::new()).keep_alive_interval(Some(PING_INTERVAL));
    let shared = Arc::new(Shared {
        server,
        handler,
        draining: watch::Sender::new(false),
        crowded: Notify::new(),
    });
    let most = most_connections()?;
    let places = Arc::new(Semaphore::new(most));
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            (stream, place) = next(&listener, &places, &shared.crowded) => {
                spawn(stream, place, &shared);
            }
        }
    }
    shared.draining.send_replace(true);
    // Those that the kernel has connected already are answered too.
    while let Some((stream, place)) = waiting(&listener, &places).await {
        spawn(stream, place, &shared);
    }
    drop(listener);
    let all_ended = places.acquire_many(most as u32);
    if tokio::time::timeout(DRAIN_TIMEOUT, all_ended).await.is_err() {
        tracing::warn!("requests were still running when the time to drain was over");
    }
    Ok(())
}

/// Asks for as many descriptors as we may have, and says how many connections that is good for.
fn most_connections() -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = (MAX_CONNECTIONS as u64 + KEPT_DESCRIPTORS).clamp(soft, hard.max(soft));
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    let most = wanted.saturating_sub(KEPT_DESCRIPTORS).clamp(1, MAX_CONNECTIONS as u64) as usize;
    if most < MAX_CONNECTIONS {
        tracing::warn!(connections = most, "few descriptors may be open here");
    }
    Ok(most)
}

/// The next connection, once there is a place for it.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    crowded: &Notify,
) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        if places.available_permits() == 0 {
            crowded.notify_one();
        }
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            return std::future::pending().await;
        };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// A connection that waits already, if there is one and a place for it.
async fn waiting(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).try_acquire_owned().ok()?;
    tokio::select! {
        biased;
        accepted = listener.accept() => Some((accepted.ok()?.0, place)),
        () = std::future::ready(()) => None,
    }
}

fn spawn(stream: TcpStream, place: OwnedSemaphorePermit, shared: &Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        connection::serve(stream, shared).await;
        drop(place);
    });
}

/// Ends with the first SIGTERM, SIGINT, or SIGHUP, which a terminal sends when it is closed.
///
/// # Errors
/// When they cannot be received.
pub fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}
