//! `mainbox doctor`: which isolation this host offers, proved by the self-test.

use std::sync::Arc;

use super::error::CommandError;
use super::kernel_hint::kernel_hint;
use super::output::print;
use crate::executor::{Executor, Health};

/// Prints the host, the tier, every layer and the findings of the self-test. Returns whether every promise holds.
///
/// # Errors
/// When nothing can be printed.
pub(super) async fn doctor(executor: &Arc<Executor>) -> Result<bool, CommandError> {
    let findings = executor.self_test_results().await.unwrap_or_default();
    let sandbox = executor.sandbox();
    let kernel = uname();
    let mut lines = vec![
        format!("host       {} {} {}", kernel.system, kernel.release, kernel.machine),
        match executor.zygote() {
            Some(zygote) => format!("python     {}", zygote.python),
            None => String::from("python     does not start; see the messages above"),
        },
        format!("isolation  {}", sandbox.tier_name()),
    ];
    lines.extend(
        kernel_hint(&kernel.release, &kernel.version).map(|hint| format!("hint       {hint}")),
    );
    lines.extend([String::new(), String::from("layers")]);
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

/// What the kernel says of itself.
#[derive(Default)]
struct Kernel {
    system: String,
    release: String,
    version: String,
    machine: String,
}

fn uname() -> Kernel {
    let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    // Fails only with a bad pointer.
    nix::sys::utsname::uname().map_or_else(
        |_| Kernel::default(),
        |name| Kernel {
            system: text(name.sysname()),
            release: text(name.release()),
            version: text(name.version()),
            machine: text(name.machine()),
        },
    )
}
