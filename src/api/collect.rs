//! Which files come back besides those in `outputs/`: patterns for their paths, relative to the working directory.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::files::{MAX_NAME_BYTES, MAX_NAME_PARTS};
use super::text::{controls_terminal, quoted};

/// The largest number of patterns in a request.
pub const MAX_PATTERNS: usize = 32;

/// The pictures that people and models write to the working directory, for example by `savefig("plot.png")`.
const PICTURES: [&str; 7] = ["*.png", "*.jpg", "*.jpeg", "*.svg", "*.gif", "*.webp", "*.pdf"];

/// Patterns such as `*.csv` and `data/**/*.csv`; by default pictures at the top of the working directory. The worker
/// matches them. Case is ignored, `*`, `?` and `[...]` match within a part, and `**` is any number of directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collect(Vec<String>);

/// Why a pattern was refused.
#[derive(Debug, thiserror::Error)]
enum CollectError {
    /// The pattern cannot match a file of the working directory.
    #[error(
        "invalid pattern `{0}`: use a relative path of at most {MAX_NAME_BYTES} bytes and {MAX_NAME_PARTS} parts, without an empty part, `.` or `..`"
    )]
    Pattern(String),
    /// There are more than [`MAX_PATTERNS`].
    #[error("at most {MAX_PATTERNS} patterns are allowed")]
    TooMany,
}

impl Default for Collect {
    fn default() -> Collect {
        Collect(PICTURES.map(String::from).to_vec())
    }
}

impl<'de> Deserialize<'de> for Collect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Collect, D::Error> {
        let patterns = Vec::<String>::deserialize(deserializer)?;
        if patterns.len() > MAX_PATTERNS {
            return Err(D::Error::custom(CollectError::TooMany));
        }
        match patterns.iter().find(|pattern| !is_pattern(pattern)) {
            Some(pattern) => {
                Err(D::Error::custom(CollectError::Pattern(quoted(pattern).into_owned())))
            }
            None => Ok(Collect(patterns)),
        }
    }
}

fn is_pattern(pattern: &str) -> bool {
    pattern.len() <= MAX_NAME_BYTES
        && pattern.split('/').count() <= MAX_NAME_PARTS
        && pattern.split('/').all(|part| !["", ".", ".."].contains(&part))
        && !pattern.chars().any(controls_terminal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Collect, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn patterns_are_relative_paths() {
        let long = "x".repeat(MAX_NAME_BYTES);
        for pattern in ["*.csv", "**", "a/b/**/[cd]?.txt", "1/2/3/4/5/6/7/8", &long] {
            assert!(read(&format!("[\"{pattern}\"]")).is_ok(), "{pattern}");
        }
        for pattern in ["", "/a", "a/", "../a", "a/./b", "1/2/3/4/5/6/7/8/9", &(long + "x")] {
            let error = read(&format!("[\"{pattern}\"]")).unwrap_err();
            assert!(error.starts_with("invalid pattern `"), "{pattern}: {error}");
        }
        assert!(read("[\"\\u001b\"]").is_err());
    }

    #[test]
    fn the_number_of_patterns_is_limited() {
        let patterns = |count| serde_json::to_string(&vec!["*"; count]).unwrap();
        assert!(read(&patterns(MAX_PATTERNS)).is_ok());
        let error = read(&patterns(MAX_PATTERNS + 1)).unwrap_err();
        assert!(error.starts_with("at most 32 patterns are allowed"), "{error}");
    }
}
