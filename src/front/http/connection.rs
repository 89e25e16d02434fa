//! One connection: its requests, its timeouts and its end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tracing::Instrument;

use super::access_log::{AccessLogEntry, LiveEntry};
use super::paced_body::PacedBody;
use super::phase::{ObservedStream, RequestGuard, State, Timeouts};
use crate::api::response::REQUEST_ID;
use crate::callers::client_ip::ClientIp;
use crate::handler::Handler;
use crate::handler::body::Body;
use crate::telemetry::execution_record::EventualRecord;
use crate::telemetry::progress::Progress;
use crate::telemetry::request_id::RequestId;

/// What answers the requests of a connection.
pub(super) trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn respond(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;

    /// How many trusted proxies are in front.
    fn proxies(&self) -> usize;
}

impl Service for Handler {
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        self.handle(request).await
    }

    fn proxies(&self) -> usize {
        self.config().proxies
    }
}

/// What the connections of a server share.
pub(super) struct Shared<S> {
    pub(super) server: auto::Builder<TokioExecutor>,
    pub(super) service: S,
    pub(super) timeouts: Timeouts,
    /// Whether the server is shutting down.
    pub(super) draining: watch::Sender<bool>,
    /// Asks one idle connection to close, to make room for another.
    pub(super) crowded: Notify,
}

impl<S: Service> Shared<S> {
    pub(super) fn new(
        server: auto::Builder<TokioExecutor>,
        service: S,
        timeouts: Timeouts,
    ) -> Arc<Shared<S>> {
        let (draining, crowded) = (watch::Sender::new(false), Notify::new());
        Arc::new(Shared { server, service, timeouts, draining, crowded })
    }
}

/// Serves `stream` until the client or the server ends it.
pub(super) async fn serve<S: Service>(stream: TcpStream, shared: Arc<Shared<S>>) {
    let peer = stream.peer_addr().ok().map(|address| address.ip());
    let state = State::new(shared.timeouts);
    let observed = ObservedStream::new(stream, Arc::clone(&state));
    let service = service_fn(|mut request: Request<Incoming>| {
        let guard = state.begin_request();
        let (shared, state) = (Arc::clone(&shared), Arc::clone(&state));
        let id = RequestId::of(request.headers(), &REQUEST_ID);
        let client = ClientIp::of(request.headers(), peer, shared.service.proxies());
        let progress = Progress::default();
        let entry = AccessLogEntry::new(&request, client, progress.clone());
        request.extensions_mut().insert(progress);
        if let Some(client) = client {
            request.extensions_mut().insert(client);
        }
        let span = id.span();
        let respond = async move {
            let mut response = shared.service.respond(request).await;
            response.headers_mut().insert(REQUEST_ID, id.header());
            // The rest of a body that arrived too slowly is not read.
            let is_last =
                response.status() == StatusCode::REQUEST_TIMEOUT || *shared.draining.borrow();
            if is_last && !state.is_http2() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(paced(response, &state, entry, guard))
        };
        respond.instrument(span)
    });
    let mut connection = pin!(shared.server.serve_connection(TokioIo::new(observed), service));
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "connection");
                }
                return;
            }
            () = state.phase_timeout() => return,
            () = state.response_timeout() => return,
            () = should_close(&state, &shared), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            // A client of HTTP/2 that does not answer would keep its place.
            () = state.closing_timeout(), if closing => return,
        }
    }
}

/// The response as the client reads it. The request counts as served and is logged now, or at the end of a live body.
fn paced(
    response: Response<Body>,
    state: &Arc<State>,
    entry: AccessLogEntry,
    request: RequestGuard,
) -> Response<PacedBody> {
    let state = Arc::clone(state);
    match response.extensions().get::<EventualRecord>() {
        Some(record) => {
            let entry = LiveEntry::new(entry, response.status(), record.clone());
            response.map(|body| PacedBody::live(body, state, entry, request))
        }
        None => {
            entry.log(&response);
            response.map(|body| PacedBody::known(body, state))
        }
    }
}

/// Returns when the connection should take no further request: the server shuts down, or another client needs the place.
async fn should_close<S>(state: &State, shared: &Shared<S>) {
    let draining = async {
        // Fails only if the sender is dropped, and `shared` owns it.
        let _ = shared.draining.subscribe().wait_for(|draining| *draining).await;
        if !state.is_http2() {
            state.last_request_timeout().await;
        }
    };
    tokio::select! {
        () = draining => {}
        () = state.idle_until(|| shared.crowded.notified()) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::handler::pace::Pace;

    /// Answers with as many bytes as the path says, after 100 ms.
    struct Bytewise;

    impl Service for Bytewise {
        async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let length = request.uri().path()[1..].parse().unwrap();
            Response::new(Body::from(Bytes::from(vec![b'x'; length])))
        }

        fn proxies(&self) -> usize {
            0
        }
    }

    const SHORT: Timeouts = Timeouts {
        head: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        last_request: Duration::from_millis(50),
        closing: Duration::from_millis(100),
        pace: Pace { grace: Duration::from_millis(300), min_bytes_per_second: 1 << 30 },
    };

    /// A client of a new connection, and the task that serves it.
    async fn connected() -> (TcpStream, tokio::task::JoinHandle<()>, Arc<Shared<Bytewise>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let shared = Shared::new(auto::Builder::new(TokioExecutor::new()), Bytewise, SHORT);
        let serving = tokio::spawn(serve(stream, Arc::clone(&shared)));
        (client, serving, shared)
    }

    async fn ends_within(serving: tokio::task::JoinHandle<()>, least: u64, most: u64) {
        let started = std::time::Instant::now();
        tokio::time::timeout(Duration::from_millis(most), serving).await.unwrap().unwrap();
        assert!(started.elapsed() >= Duration::from_millis(least), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn a_connection_without_a_request_ends_after_the_idle_timeout() {
        let (_client, serving, _) = connected().await;
        ends_within(serving, 590, 5000).await;
    }

    #[tokio::test]
    async fn a_slow_head_ends_the_connection() {
        let (mut client, serving, _) = connected().await;
        client.write_all(b"GET /1 HT").await.unwrap();
        ends_within(serving, 290, 590).await;
    }

    #[tokio::test]
    async fn a_client_that_takes_no_response_loses_its_connection() {
        let (mut client, serving, _) = connected().await;
        client.write_all(b"GET /20000000 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        ends_within(serving, 390, 5000).await;
    }

    #[tokio::test]
    async fn a_request_is_answered_before_a_draining_connection_closes() {
        let (mut client, serving, shared) = connected().await;
        client
            .write_all(b"GET /3 HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\n\r\n")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        shared.draining.send_replace(true);
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("\r\nx-request-id: mine\r\n"), "{response}");
        assert!(response.contains("\r\nconnection: close\r\n"), "{response}");
        assert!(response.ends_with("\r\n\r\nxxx"), "{response}");
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn an_idle_connection_makes_room_and_a_busy_one_does_not() {
        let (mut client, serving, shared) = connected().await;
        client.write_all(b"GET /3 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        shared.crowded.notify_waiters();
        let mut head = [0; 15];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        tokio::time::sleep(Duration::from_millis(20)).await;
        shared.crowded.notify_waiters();
        ends_within(serving, 0, 200).await;
    }
}
