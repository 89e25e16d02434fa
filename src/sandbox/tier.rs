//! How strong the isolation is, and the mechanisms that make it so.

use serde::Serialize;

/// How strong the isolation is; the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Namespaces around the zygote, and all of `Seccomp`.
    Namespaces,
    /// A seccomp allow-list, Landlock and own uids where the host has them, and all of `Rlimits`.
    Seccomp,
    /// Resource limits that leave no descriptor, process or file to be had.
    Rlimits,
}

impl Tier {
    /// Every tier, the strongest first.
    pub const ALL: [Tier; 3] = [Tier::Namespaces, Tier::Seccomp, Tier::Rlimits];

    /// The tier's name in the configuration, in `/about` and in the header of an answer.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Namespaces => "namespaces",
            Tier::Seccomp => "seccomp",
            Tier::Rlimits => "rlimits",
        }
    }
}

/// A mechanism and whether this host gives it.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// What it is called.
    pub name: &'static str,
    /// Whether it works here.
    pub works: bool,
    /// Its version, or what the host answered.
    pub detail: String,
}
