//! The HTTP front: HTTP/1.1 with keep-alive, and HTTP/2 without TLS, on one port.

mod access_log;
mod connection;
mod paced_body;
mod phase;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use self::connection::{Service, Shared};
use self::phase::Timeouts;
use crate::handler::Handler;

/// The largest number of connections, where the descriptor limit allows them. Further connections wait in the kernel
/// until one ends; an idle one is closed to make room.
pub const MAX_CONNECTIONS: usize = 1000;
/// Descriptors that connections must leave for workers (five each), the runtime and the zygotes.
const RESERVED_DESCRIPTORS: u64 = 256;
/// How long requests in flight may take once a shutdown has begun. Cloud Run kills the process after 10 seconds:
/// <https://cloud.google.com/run/docs/container-contract#instance-shutdown>.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// The largest head of a request, bytes, and the most fields in it. A larger one gets 431.
const MAX_HEAD_BYTES: usize = 32 * 1024;
const MAX_FIELDS: usize = 64;
/// The most requests that an HTTP/2 client may send at the same time on one connection.
const MAX_STREAMS: u32 = 32;
/// How much of their bodies an HTTP/2 client may send before the service has read it, bytes: for each request and for all
/// of a connection. A thousand connections can fill it.
const STREAM_WINDOW_BYTES: u32 = 32 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024 - 1;
/// The interval of pings to an HTTP/2 client.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How many idle connections are asked to close when there is no place for another. One of HTTP/2 may take its time.
const CLOSED_AT_ONCE: usize = 8;
/// The pause after a failed accept, until closing connections have freed descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Binding the address failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind {address}: {source}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Listens on `port` of `host`, or of all IPv6 and IPv4 addresses if `host` is `None`. Port 0 picks a free port. Clients
/// can connect from now on and wait for [`serve`].
///
/// # Errors
/// When the address is in use or may not be bound.
pub fn listen(host: Option<IpAddr>, port: u16) -> Result<StdListener, ListenError> {
    let bind = |host: IpAddr| {
        let address = SocketAddr::new(host, port);
        bind(address).map_err(|source| ListenError { address, source })
    };
    let Some(host) = host else {
        // One IPv6 socket also accepts IPv4 clients. A host without IPv6 has no such socket.
        return match bind(Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if is_missing_ipv6(&error.source) => bind(Ipv4Addr::UNSPECIFIED.into()),
            bound => bound,
        };
    };
    bind(host)
}

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // As the standard library does, so that a restart can bind while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(MAX_CONNECTIONS as i32)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn is_missing_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Serves on `listener` until `shutdown` completes, then answers the requests that were sent by then, for at most 8
/// seconds.
///
/// # Errors
/// When the runtime cannot wait for the listener.
pub async fn serve(
    listener: StdListener,
    handler: Handler,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    tracing::info!(address = listener.local_addr()?.to_string(), "serving");
    let server = protocols();
    let shared = Shared::new(server, handler, Timeouts::default());
    let max_connections = max_connections()?;
    let places = Arc::new(Semaphore::new(max_connections));
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            (stream, place) = next_connection(&listener, &places, &shared.crowded) => {
                spawn(stream, place, &shared);
            }
        }
    }
    shared.draining.send_replace(true);
    // Connections that the kernel has accepted already are answered too.
    while let Some((stream, place)) = pending_connection(&listener, &places).await {
        spawn(stream, place, &shared);
    }
    drop(listener);
    let all_ended = places.acquire_many(max_connections as u32);
    if tokio::time::timeout(DRAIN_TIMEOUT, all_ended).await.is_err() {
        tracing::warn!("some requests were still running at the end of the shutdown");
    }
    Ok(())
}

/// HTTP/1.1 and HTTP/2, with limits on what a connection can hold before a request is handled.
fn protocols() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().max_buf_size(MAX_HEAD_BYTES).max_headers(MAX_FIELDS);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(PING_INTERVAL))
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(2 * MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    server
}

/// Raises the descriptor limit, and returns how many connections it allows.
fn max_connections() -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = (MAX_CONNECTIONS as u64 + RESERVED_DESCRIPTORS).clamp(soft, hard.max(soft));
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    let allowed = wanted.saturating_sub(RESERVED_DESCRIPTORS);
    let connections = allowed.clamp(1, MAX_CONNECTIONS as u64) as usize;
    if connections < MAX_CONNECTIONS {
        tracing::warn!(connections, "the descriptor limit reduces the number of connections");
    }
    Ok(connections)
}

/// Accepts the next connection once a slot is free.
async fn next_connection(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    crowded: &Notify,
) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        if places.available_permits() == 0 {
            (0..CLOSED_AT_ONCE).for_each(|_| crowded.notify_one());
        }
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            return std::future::pending().await;
        };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Accepts a connection that is already waiting, if there is one and a slot is free.
async fn pending_connection(
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

/// Serves a connection in a task of its own, so that a panic ends this connection only.
fn spawn<S: Service>(stream: TcpStream, place: OwnedSemaphorePermit, shared: &Arc<Shared<S>>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        // Dropped at the end of the task, even if it panics.
        let _place = place;
        connection::serve(stream, shared).await;
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Response};
    use hyper::body::Incoming;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::handler::body::Body;

    #[test]
    fn one_socket_listens_for_both_address_families() {
        let listener = listen(None, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        if listener.local_addr().unwrap().is_ipv6() {
            assert!(std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok());
        }
    }

    #[test]
    fn the_error_names_a_port_that_is_in_use() {
        let host = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = listen(host, 0).unwrap();
        let port = (port.local_addr().unwrap().port(), port);
        assert_eq!(
            listen(host, port.0).unwrap_err().to_string(),
            format!("cannot bind 127.0.0.1:{}: Address already in use (os error 98)", port.0)
        );
    }

    /// Panics on request.
    struct Panics;

    impl Service for Panics {
        async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
            assert_ne!(request.uri().path(), "/panic", "the test wants a panic");
            Response::new(Body::from(Bytes::from("fine")))
        }

        fn proxies(&self) -> usize {
            0
        }
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_own_connection_and_frees_its_slot() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = auto::Builder::new(TokioExecutor::new());
        let shared = Shared::new(server, Panics, Timeouts::default());
        let places = Arc::new(Semaphore::new(2));
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.unwrap());
            let (stream, place) = next_connection(&listener, &places, &shared.crowded).await;
            spawn(stream, place, &shared);
        }
        let mut get = async |client: usize, path: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            clients[client].write_all(request.as_bytes()).await.unwrap();
            let mut response = [0; 512];
            let length = clients[client].read(&mut response).await.unwrap_or(0);
            String::from_utf8_lossy(&response[..length]).into_owned()
        };
        assert_eq!(get(0, "/panic").await, "");
        assert!(get(1, "/").await.ends_with("\r\n\r\nfine"));
        assert_eq!(places.available_permits(), 1);
    }
}
