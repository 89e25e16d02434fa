//! The self-test: a script that attempts what the sandbox must refuse. It runs in a worker of every zygote, before other
//! workers of that zygote serve requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::harness::SELF_TEST;
use super::job::Job;
use super::outcome::Execution;
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
        timeout: Duration::from_secs(10),
        policy: Policy::Off,
        ..Job::of_script(SELF_TEST, config)
    }
}

/// What is known about the sandbox of the workers of a zygote.
#[derive(Clone, Debug, Default)]
pub(super) enum Proof {
    /// The self-test has not ended yet.
    #[default]
    Pending,
    /// The self-test did not run, several times. It is tried again.
    NotRun(Arc<[Finding]>),
    /// Every attempt was refused.
    Held(Arc<[Finding]>),
    /// An attempt was allowed. This is final.
    Broken(Arc<[Finding]>),
}

impl Proof {
    /// The proof that `findings` are.
    pub(super) fn of(findings: Vec<Finding>) -> Proof {
        match findings.iter().all(|finding| finding.held) {
            true => Proof::Held(findings.into()),
            false => Proof::Broken(findings.into()),
        }
    }

    /// The proof that remains when the self-test does not run, for the reason `error`.
    pub(super) fn not_run(error: &str) -> Proof {
        let answer = format!("the self-test did not run: {error}");
        Proof::NotRun(Arc::new([Finding { promise: "run the self-test", held: false, answer }]))
    }

    /// The findings, if the self-test has ended.
    pub(super) fn findings(&self) -> Option<Arc<[Finding]>> {
        match self {
            Proof::Pending => None,
            Proof::NotRun(findings) | Proof::Held(findings) | Proof::Broken(findings) => {
                Some(Arc::clone(findings))
            }
        }
    }

    /// Returns whether every attempt was refused.
    pub(super) fn held(&self) -> bool {
        matches!(self, Proof::Held(_))
    }
}

/// The findings of a run. Without a tier nothing is promised, so nothing can fail.
///
/// # Errors
/// Why the self-test did not run, in a sentence. That says nothing about the sandbox.
pub(super) fn findings(execution: &Execution, sandbox: &Sandbox) -> Result<Vec<Finding>, String> {
    let returned = execution.outcome.as_ref().map_err(|failure| failure.error.clone())?;
    let answers: BTreeMap<String, String> =
        serde_json::from_str(returned.result.get()).map_err(|error| error.to_string())?;
    let promised = |place: &Where| match place {
        Where::Everywhere => sandbox.tier.is_some(),
        Where::Filtered => matches!(sandbox.tier, Some(Tier::Namespaces | Tier::Seccomp)),
        Where::Confined => sandbox.confines_files(),
    };
    let promised = ATTEMPTS.iter().filter(|(_, place)| promised(place));
    let findings = promised
        .map(|(promise, _)| {
            let answer = answers.get(*promise).map_or("not tried", String::as_str);
            Finding { promise, held: answer.starts_with("refused"), answer: answer.to_owned() }
        })
        .collect();
    Ok(findings)
}
