//! What ends mainbox: a signal, or the end of standard input.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Completes with the first SIGTERM or SIGINT, with the SIGHUP that a closing terminal sends, or, if `with_stdin` is set,
/// when standard input ends.
///
/// # Errors
/// When the signals cannot be received, or the thread that reads standard input cannot be started.
pub fn requested(with_stdin: bool) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let stdin_ended = Arc::new(Notify::new());
    if with_stdin {
        let ended = Arc::clone(&stdin_ended);
        // A thread of its own, since the runtime would wait at its end for a read that it started.
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            // An input that cannot be read tells nothing about its other end, so it counts as ended.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            ended.notify_one();
        })?;
    }
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {}
            () = stdin_ended.notified() => {}
        }
    })
}
