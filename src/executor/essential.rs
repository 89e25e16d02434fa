//! Tasks without which nothing can be served.

/// Spawns a task that must never panic. If it does, the process exits with code 1, so that the platform starts a new one:
/// a service that lost such a task would accept requests and never answer them.
pub(super) fn spawn_essential(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        let _guard = ExitOnPanic;
        task.await;
    });
}

/// Exits the process if it is dropped by a panic.
struct ExitOnPanic;

impl Drop for ExitOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a task of the supervisor panicked; the process exits");
            crate::telemetry::log::flush();
            std::process::exit(1);
        }
    }
}
