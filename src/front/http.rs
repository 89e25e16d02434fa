//! The HTTP front: HTTP/1.1 with keep-alive and h2c on one port.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::handler::Handler;

/// How long a client may take to send its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests in flight may take once a shutdown has begun.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// After a failed accept: descriptors come back when connections close.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The port is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("PORT {port} cannot be served: {source}")]
pub struct ListenError {
    port: u16,
    source: io::Error,
}

/// Listens on `port` of all addresses; on a free one, which the log names, when it is 0.
///
/// # Errors
/// When the port is taken or not ours to take.
pub async fn listen(port: u16) -> Result<TcpListener, ListenError> {
    let failed = |source| ListenError { port, source };
    let listener = TcpListener::bind(("0.0.0.0", port)).await.map_err(failed)?;
    tracing::info!(address = %listener.local_addr().map_err(failed)?, "serving");
    Ok(listener)
}

/// Serves on `listener` until `shutdown`, then answers what is in flight, for at most 8 seconds.
pub async fn serve(listener: TcpListener, handler: Handler, shutdown: impl Future<Output = ()>) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(Some(HEADER_TIMEOUT));
    let connections = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    refused_by_kernel(&error).await;
                    continue;
                }
            },
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let handler = handler.clone();
        let service = service_fn(move |request| {
            let handler = handler.clone();
            async move { Ok::<_, Infallible>(handler.handle(request).await) }
        });
        let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "connection");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.shutdown()).await.is_err() {
        tracing::warn!("requests were still running when the time to drain was over");
    }
}

async fn refused_by_kernel(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

/// Ends with the first SIGTERM or SIGINT.
///
/// # Errors
/// When they cannot be received.
pub fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
