//! `mainbox doctor`: which isolation this host offers, proved by the self-test.

use std::sync::Arc;

use super::error::CommandError;
use super::output::print;
use crate::executor::{Executor, Health};

/// Prints the host, the tier, every layer and the findings of the self-test. Returns whether every promise holds.
///
/// # Errors
/// When nothing can be printed.
pub(super) async fn doctor(executor: &Arc<Executor>) -> Result<bool, CommandError> {
    let findings = executor.self_test_results().await.unwrap_or_default();
    let sandbox = executor.sandbox();
    let mut lines = vec![
        format!("host       {}", host()),
        match executor.zygote() {
            Some(zygote) => format!("python     {}", zygote.python),
            None => String::from("python     does not start; see the messages above"),
        },
        format!("isolation  {}", sandbox.tier_name()),
        String::new(),
        String::from("layers"),
    ];
    for layer in &sandbox.layers {
        let mark = if layer.works { "yes" } else { "no " };
        lines.push(format!("  {mark}  {}: {}", layer.name, layer.detail));
    }
    lines.extend([String::new(), String::from("self-test")]);
    for finding in findings.iter() {
        let mark = if finding.held { "ok " } else { "BAD" };
        lines.push(format!("  {mark}  {}: {}", finding.promise, finding.answer));
    }
    print(&(lines.join("\n") + "\n"))?;
    Ok(executor.health() == Health::Healthy)
}

fn host() -> String {
    nix::sys::utsname::uname().map_or_else(
        |errno| errno.to_string(),
        |name| {
            let [system, release, machine] = [name.sysname(), name.release(), name.machine()]
                .map(|part| part.to_string_lossy().into_owned());
            format!("{system} {release} {machine}")
        },
    )
}
