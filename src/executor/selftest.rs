//! The self-test: a script that tries the forbidden things, run through the real path before anything is served.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::{Execution, Job};
use crate::config::{Config, Policy};
use crate::sandbox::Tier;

/// The script. Its `main` returns an object: attempt -> what it met.
const SCRIPT: &str = include_str!("../harness/selftest.py");

/// What the script must try, and the weakest tier that refuses it. An attempt that it does not report did not hold.
const ATTEMPTS: &[(&str, Tier)] = &[
    ("open a network socket", Tier::Rlimits),
    ("start a process", Tier::Rlimits),
    ("read the memory of the parent", Tier::Rlimits),
    ("read the environment of the parent", Tier::Rlimits),
    ("read a file outside the interpreter", Tier::Rlimits),
    ("write outside the scratch directory", Tier::Rlimits),
    ("use inherited descriptors", Tier::Rlimits),
    ("execute a program", Tier::Seccomp),
    ("signal another process", Tier::Seccomp),
    ("create a namespace", Tier::Seccomp),
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
        timeout: Duration::from_secs(10),
        memory_bytes: config.memory_bytes,
        policy: Policy::Off,
    }
}

/// What the run of the self-test shows. Without a tier nothing is promised, so nothing can fail.
pub(super) fn findings(execution: &Execution, tier: Option<Tier>) -> Vec<Finding> {
    let answers: BTreeMap<String, String> = match &execution.outcome {
        Ok(value) => serde_json::from_str(value.get()).unwrap_or_default(),
        Err(failure) => {
            let answer = format!("the self-test did not run: {}", failure.error);
            return vec![Finding { promise: "run the self-test", held: false, answer }];
        }
    };
    ATTEMPTS
        .iter()
        .filter(|(_, weakest)| tier.is_none_or(|tier| tier <= *weakest))
        .map(|(promise, _)| {
            let answer = answers.get(*promise).map_or("not tried", String::as_str);
            let held = tier.is_none() || answer.starts_with("refused");
            Finding { promise, held, answer: answer.to_owned() }
        })
        .collect()
}

/// Whether every attempt was refused.
pub(super) fn holds(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.held)
}
