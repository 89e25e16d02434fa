//! A sandbox mechanism and whether the host offers it.

use serde::Serialize;

/// A mechanism and whether it works on this host.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// The name in `/about`, in `doctor` and in messages.
    pub name: &'static str,
    /// Whether it works here.
    pub works: bool,
    /// Its version, or why it does not work.
    pub detail: String,
}
