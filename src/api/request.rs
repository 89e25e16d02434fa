//! The request of `POST /execute`, read and checked.

use std::time::Duration;

use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::catalogue::{Failure, Kind};
use super::files::{Files, OUTPUTS};
use super::json_depth;
use super::limits::timeout_from_seconds;

/// A request to run a script.
#[derive(Debug)]
pub struct ExecuteRequest {
    /// Python source: not blank, no NUL character, within the server's limit.
    pub script: String,
    /// The argument of `main`, as the JSON text that was sent. `None` calls `main()` without an argument.
    pub input: Option<Box<RawValue>>,
    /// Files to write to the working directory before the script starts.
    pub files: Files,
    /// The requested wall time limit. The server may allow less.
    pub timeout: Option<Duration>,
    /// The requested memory limit, MB. The server may allow less.
    pub memory_mb: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    script: String,
    #[serde(default, deserialize_with = "present")]
    input: Option<Box<RawValue>>,
    #[serde(default)]
    files: Files,
    #[serde(default, deserialize_with = "limits_object")]
    limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(default)]
    timeout_seconds: Option<f64>,
    #[serde(default)]
    memory_mb: Option<u64>,
}

/// Reads `limits`. serde alone would also accept an array with the fields in order.
fn limits_object<'de, D: Deserializer<'de>>(value: D) -> Result<Limits, D::Error> {
    let value: &RawValue = Deserialize::deserialize(value)?;
    if !value.get().starts_with('{') {
        return Err(D::Error::custom("limits must be an object"));
    }
    serde_json::from_str(value.get()).map_err(|error| {
        // serde_json counts the position from the start of `limits`, which would mislead the caller.
        let text = error.to_string();
        D::Error::custom(text.split(" at line ").next().unwrap_or(&text))
    })
}

/// Tells `"input": null`, which calls `main(None)`, from an absent `input`, which calls `main()`.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(value).map(Some)
}

impl ExecuteRequest {
    /// Reads an `application/json` body.
    ///
    /// # Errors
    /// `invalid_request` or `payload_too_large`, with a sentence that names the problem.
    pub fn from_json(body: &[u8], max_script_bytes: usize) -> Result<ExecuteRequest, Failure> {
        if !json_depth::is_shallow(body) {
            let limit = json_depth::MAX_DEPTH;
            return Err(Failure::invalid_request(format!(
                "The body is nested deeper than {limit} levels"
            )));
        }
        // serde would accept an array with the fields in order, and describe other types by Rust's names.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(match serde_json::from_slice::<IgnoredAny>(body) {
                Ok(_) => Failure::invalid_request("The body must be a JSON object"),
                Err(error) => not_json(&error),
            });
        }
        let body: Body = serde_json::from_slice(body).map_err(|error| match error.classify() {
            Category::Data => {
                Failure::invalid_request(format!("The request is not valid: {error}"))
            }
            _ => not_json(&error),
        })?;
        let timeout = body
            .limits
            .timeout_seconds
            .map(|seconds| {
                timeout_from_seconds(seconds).ok_or_else(|| {
                    Failure::invalid_request(
                        "limits.timeout_seconds must be above 0 and at most 300",
                    )
                })
            })
            .transpose()?;
        if body.limits.memory_mb == Some(0) {
            return Err(Failure::invalid_request("limits.memory_mb must be at least 1"));
        }
        if body.files.contains(OUTPUTS) {
            return Err(Failure::invalid_request(format!(
                "files: `{OUTPUTS}` is reserved for the directory of returned files"
            )));
        }
        let script = check_script(body.script, max_script_bytes)?;
        Ok(ExecuteRequest {
            script,
            input: body.input,
            files: body.files,
            timeout,
            memory_mb: body.limits.memory_mb,
        })
    }

    /// Reads a `text/x-python` body, which is the script itself.
    ///
    /// # Errors
    /// `invalid_request` or `payload_too_large`, with a sentence that names the problem.
    pub fn from_python(body: &[u8], max_script_bytes: usize) -> Result<ExecuteRequest, Failure> {
        let script = std::str::from_utf8(body).map_err(|error| {
            Failure::invalid_request(format!("The script is not valid UTF-8: {error}"))
        })?;
        let script = check_script(script.to_owned(), max_script_bytes)?;
        Ok(ExecuteRequest {
            script,
            input: None,
            files: Files::default(),
            timeout: None,
            memory_mb: None,
        })
    }
}

fn not_json(error: &serde_json::Error) -> Failure {
    Failure::invalid_request(format!("The body is not valid JSON: {error}"))
}

fn check_script(script: String, max_bytes: usize) -> Result<String, Failure> {
    if script.trim_ascii().is_empty() {
        return Err(Failure::invalid_request("The script is empty"));
    }
    if script.contains('\0') {
        return Err(Failure::invalid_request("The script contains a NUL character"));
    }
    if script.len() > max_bytes {
        let error = format!("The script has {} bytes; the limit is {max_bytes}", script.len());
        return Err(Failure::new(Kind::PayloadTooLarge, error));
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_input_differs_from_an_absent_one() {
        let with = ExecuteRequest::from_json(br#"{"script":"x","input":null}"#, 9).unwrap();
        assert_eq!(with.input.unwrap().get(), "null");
        assert!(ExecuteRequest::from_json(br#"{"script":"x"}"#, 9).unwrap().input.is_none());
    }

    #[test]
    fn a_body_that_is_not_an_object_is_told_so_without_a_rust_type() {
        for body in ["3", "[]", "null", "\"x\"", " true "] {
            let failure = ExecuteRequest::from_json(body.as_bytes(), 9).unwrap_err();
            assert_eq!(failure.error, "The body must be a JSON object", "{body}");
        }
        let failure = ExecuteRequest::from_json(b"[1,", 9).unwrap_err();
        assert!(failure.error.starts_with("The body is not valid JSON: EOF"), "{}", failure.error);
    }
}
