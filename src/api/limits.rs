//! Limits that a request and the configuration share.

use std::time::Duration;

/// The longest wall time limit that can be configured or requested, seconds.
pub const MAX_TIMEOUT_SECONDS: f64 = 300.0;

/// The limits of what a request contains, besides that of its whole body.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// The largest script, and the largest standard input, bytes.
    pub max_script_bytes: usize,
    /// The largest number of inputs.
    pub max_inputs: usize,
}

/// Converts a number of seconds into a wall time limit of at least one millisecond. Returns `None` unless the number is
/// above 0 and at most [`MAX_TIMEOUT_SECONDS`].
pub fn timeout_from_seconds(seconds: f64) -> Option<Duration> {
    (seconds > 0.0 && seconds <= MAX_TIMEOUT_SECONDS)
        .then(|| Duration::from_secs_f64(seconds).max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_above_zero_and_at_most_300_seconds() {
        assert_eq!(timeout_from_seconds(0.25), Some(Duration::from_millis(250)));
        assert_eq!(timeout_from_seconds(1e-9), Some(Duration::from_millis(1)));
        assert_eq!(timeout_from_seconds(300.0), Some(Duration::from_secs(300)));
        for seconds in [0.0, -1.0, 300.1, f64::NAN, f64::INFINITY] {
            assert_eq!(timeout_from_seconds(seconds), None, "{seconds}");
        }
    }
}
