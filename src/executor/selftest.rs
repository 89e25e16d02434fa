//! The self-test: a script that tries the forbidden things, run through the real path before anything is served.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::{Execution, Job};
use crate::config::{Config, Policy};
use crate::files::Files;
use crate::sandbox::Sandbox;
use crate::sandbox::tier::Tier;

/// The script. Its `main` returns an object: attempt -> what it met.
const SCRIPT: &str = include_str!("../harness/selftest.py");

/// Where an attempt must be refused.
#[derive(Clone, Copy)]
enum Where {
    /// In every tier.
    Everywhere,
    /// Where system calls are filtered.
    Filtered,
    /// Where files are confined.
    Confined,
}

/// What the script must try. An attempt that it does not report did not hold.
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

/// What became of one attempt.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was tried.
    pub promise: &'static str,
    /// Whether it was refused.
    pub held: bool,
    /// What it met.
    pub answer: String,
}

/// The self-test as a job: under no policy, since the boundary must hold without it.
pub(super) fn job(config: &Config) -> Job {
    Job {
        script: String::from(SCRIPT),
        input: None,
        files: Files::default(),
        timeout: Duration::from_secs(10),
        live: None,
        deadline: None,
        memory_bytes: config.memory_bytes,
        policy: Policy::Off,
    }
}

/// What the run of the self-test shows. Without a tier nothing is promised, so nothing can fail.
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

/// Whether every attempt was refused.
pub(super) fn holds(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.held)
}
