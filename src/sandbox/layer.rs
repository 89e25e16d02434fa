//! A sandbox mechanism and whether it works on this host.

use serde::Serialize;

/// A sandbox mechanism and whether it works on this host.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// The name shown in `/about`, in `mainbox doctor` and in error messages.
    pub name: &'static str,
    /// Whether the mechanism works on this host.
    pub works: bool,
    /// The version or variant that works, or the reason why the mechanism does not work.
    pub detail: String,
}
