//! Tasks without which nothing can be served.

/// Spawns a task that must never panic. If it does, the process exits with code 1, so that the platform starts a new one:
/// a service that lost such a task would accept requests and never answer them.
pub(super) fn spawn_essential(task: impl Future<Output = ()> + Send + 'static) {
    let task = tokio::spawn(task);
    tokio::spawn(async move {
        if task.await.is_err_and(|error| error.is_panic()) {
            tracing::error!("a task of the supervisor panicked; the process exits");
            std::process::exit(1);
        }
    });
}
