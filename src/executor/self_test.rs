//! The self-test: a script that attempts what the sandbox must refuse. It runs in a real worker before anything is served.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::harness::SELF_TEST;
use super::job::Job;
use super::outcome::Execution;
use crate::api::files::Files;
use crate::config::Config;
use crate::config::choices::{Policy, Tier};
use crate::sandbox::Sandbox;

/// The tiers in which an attempt must be refused.
#[derive(Clone, Copy)]
enum Where {
    /// Every tier.
    Everywhere,
    /// Tiers that filter system calls.
    Filtered,
    /// Tiers that confine files.
    Confined,
}

/// What the script attempts. An attempt that the script does not report counts as failed.
const ATTEMPTS: &[(&str, Where)] = &[
    ("open a network socket", Where::Everywhere),
    ("start a process", Where::Everywhere),
    ("read the memory of the parent", Where::Everywhere),
    ("read the environment of the parent", Where::Everywhere),
    ("use inherited descriptors", Where::Everywhere),
    ("read a file outside the interpreter", Where::Confined),
    ("write outside the scratch directory", Where::Confined),
    ("execute a program", Where::Filtered),
    ("signal another process", Where::Filtered),
    ("create a namespace", Where::Filtered),
];

/// The outcome of one attempt.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was attempted.
    pub promise: &'static str,
    /// Whether it was refused.
    pub held: bool,
    /// What the kernel answered.
    pub answer: String,
}

/// The self-test as a job. It runs without a policy, since the sandbox must hold without one.
pub(super) fn job(config: &Config) -> Job {
    Job {
        script: String::from(SELF_TEST),
        input: None,
        files: Files::default(),
        timeout: Duration::from_secs(10),
        output_sink: None,
        deadline: None,
        memory_bytes: config.memory_bytes,
        policy: Policy::Off,
    }
}

/// The findings of a run. Without a tier nothing is promised, so nothing can fail.
pub(super) fn findings(execution: &Execution, sandbox: &Sandbox) -> Vec<Finding> {
    let answers: BTreeMap<String, String> = match &execution.outcome {
        Ok(returned) => serde_json::from_str(returned.result.get()).unwrap_or_default(),
        Err(failure) => {
            let answer = format!("the self-test did not run: {}", failure.error);
            return vec![Finding { promise: "run the self-test", held: false, answer }];
        }
    };
    let promised = |place: &Where| match place {
        Where::Everywhere => sandbox.tier.is_some(),
        Where::Filtered => matches!(sandbox.tier, Some(Tier::Namespaces | Tier::Seccomp)),
        Where::Confined => sandbox.confines_files(),
    };
    ATTEMPTS
        .iter()
        .filter(|(_, place)| promised(place))
        .map(|(promise, _)| {
            let answer = answers.get(*promise).map_or("not tried", String::as_str);
            Finding { promise, held: answer.starts_with("refused"), answer: answer.to_owned() }
        })
        .collect()
}

/// Returns whether every attempt was refused.
pub(super) fn holds(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.held)
}
