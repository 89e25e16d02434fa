//! The result of a call of `run_python`: what a script returned, printed, drew and wrote, as MCP's content.
//!
//! The blocks come in a fixed order: what was printed, the result or the error, the pictures, the other files. Results
//! and files are borrowed, since they can have megabytes.

use serde::Serialize;
use serde_json::value::RawValue;

use super::content::{Content, of_files, text};
use super::method::Modern;
use super::revision::Era;
use crate::api::catalogue::{Failure, Kind};
use crate::executor::outcome::{Execution, Returned};
use crate::executor::output_capture::Captured;

/// The result of `tools/call`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult<'a> {
    content: Vec<Content<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    structured_content: Option<Structured<'a>>,
    is_error: bool,
    #[serde(flatten)]
    modern: Option<Modern>,
}

/// The result for programs.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Structured<'a> {
    /// What `main` returned.
    Value(&'a RawValue),
    /// The same, if it is no object and the client is of the legacy era, whose schema wants one.
    Wrapped { result: &'a RawValue },
    /// What went wrong.
    Failure {
        error: &'a str,
        kind: Kind,
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        traceback: Option<&'a str>,
    },
}

impl<'a> ToolResult<'a> {
    /// The result of a run. `warning` is about the configuration of the service.
    pub fn of(execution: &'a Execution, warning: Option<&'static str>, era: Era) -> ToolResult<'a> {
        let mut content = Vec::new();
        push_output(&mut content, "", "stdout", &execution.stdout);
        push_output(&mut content, "stderr:\n", "stderr", &execution.stderr);
        let structured_content = match &execution.outcome {
            Ok(returned) => {
                push_returned(&mut content, returned);
                structured(&returned.result, era)
            }
            Err(failure) => {
                content.push(text(sentence(failure)));
                Some(of_failure(failure))
            }
        };
        content.extend(warning.map(text));
        let is_error = execution.outcome.is_err();
        ToolResult { content, structured_content, is_error, modern: Modern::of(era) }
    }

    /// The result of a call whose script did not run.
    pub fn refused(failure: &'a Failure, era: Era) -> ToolResult<'a> {
        ToolResult {
            content: vec![text(sentence(failure))],
            structured_content: Some(of_failure(failure)),
            is_error: true,
            modern: Modern::of(era),
        }
    }
}

fn push_output<'a>(
    content: &mut Vec<Content<'a>>,
    label: &str,
    name: &str,
    captured: &'a Captured,
) {
    if !captured.bytes.is_empty() {
        let printed = String::from_utf8_lossy(&captured.bytes);
        content.push(if label.is_empty() {
            text(printed)
        } else {
            text(format!("{label}{printed}"))
        });
    }
    if captured.truncated {
        content.push(text(format!("({name} was longer than its limit; the rest was discarded)")));
    }
}

/// Adds the result and the files. A result of `null` says nothing beside what was printed or drawn.
fn push_returned<'a>(content: &mut Vec<Content<'a>>, returned: &'a Returned) {
    let result = returned.result.get();
    if result != "null" || (content.is_empty() && returned.files.is_empty()) {
        content.push(text(result));
    }
    content.extend(of_files(&returned.files));
}

fn structured(result: &RawValue, era: Era) -> Option<Structured<'_>> {
    match (result.get().as_bytes().first(), era) {
        (Some(b'n'), _) => None,
        (Some(b'{'), _) | (_, Era::Modern) => Some(Structured::Value(result)),
        (_, Era::Legacy) => Some(Structured::Wrapped { result }),
    }
}

fn of_failure(failure: &Failure) -> Structured<'_> {
    Structured::Failure {
        error: &failure.error,
        kind: failure.kind,
        line: failure.line,
        traceback: failure.traceback.as_deref(),
    }
}

/// The failure as a text from which a model can correct its script.
fn sentence(failure: &Failure) -> String {
    let mut text = failure.error.clone();
    if let Some(line) = failure.line {
        text += &format!(" (line {line})");
    }
    if let Some(traceback) = &failure.traceback {
        text += "\n\n";
        text += traceback;
    }
    if let Some(seconds) = failure.retry_after {
        text += &format!("; retry after {seconds} s");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::content::MAX_IMAGE_BYTES;
    use super::*;
    use crate::api::files::Files;

    fn execution(outcome: Result<Returned, Failure>, printed: &str) -> Execution {
        let stdout = Captured { bytes: printed.into(), truncated: false };
        Execution {
            outcome,
            stdout,
            stderr: Captured::default(),
            queue: Duration::ZERO,
            run: Duration::ZERO,
            cpu: Duration::ZERO,
            peak_memory: 0,
        }
    }

    fn returned(result: &str, files: &[(&str, &[u8])]) -> Result<Returned, Failure> {
        let result = RawValue::from_string(String::from(result)).unwrap();
        let mut kept = Files::default();
        for (name, content) in files {
            kept.insert(String::from(*name), content.to_vec()).unwrap();
        }
        Ok(Returned { result, files: kept })
    }

    fn result(execution: &Execution, era: Era) -> Value {
        serde_json::to_value(ToolResult::of(execution, None, era)).unwrap()
    }

    #[test]
    fn a_result_comes_as_text_and_as_structured_content() {
        let list = execution(returned("[1, 2]", &[]), "hi\n");
        let text = json!([{"type": "text", "text": "hi\n"}, {"type": "text", "text": "[1, 2]"}]);
        let modern = result(&list, Era::Modern);
        let server =
            json!({"name": "mainbox", "title": "mainbox", "version": env!("CARGO_PKG_VERSION")});
        assert_eq!(
            modern,
            json!({
                "content": text, "structuredContent": [1, 2], "isError": false,
                "resultType": "complete",
                "_meta": {"io.modelcontextprotocol/serverInfo": server},
            })
        );
        let legacy = result(&list, Era::Legacy);
        assert_eq!(
            legacy,
            json!({"content": text, "structuredContent": {"result": [1, 2]}, "isError": false})
        );
        let object = execution(returned(r#"{"a": 1}"#, &[]), "");
        assert_eq!(result(&object, Era::Legacy)["structuredContent"], json!({"a": 1}));
    }

    #[test]
    fn null_is_left_out_beside_output() {
        let printed = result(&execution(returned("null", &[]), "hi\n"), Era::Legacy);
        let expected = json!({"content": [{"type": "text", "text": "hi\n"}], "isError": false});
        assert_eq!(printed, expected);
        let silent = result(&execution(returned("null", &[]), ""), Era::Legacy);
        assert_eq!(silent["content"], json!([{"type": "text", "text": "null"}]));
    }

    #[test]
    fn a_failure_has_its_line_and_traceback() {
        let failure = Failure {
            line: Some(2),
            traceback: Some(String::from("Traceback")),
            ..Failure::new(Kind::Exception, "ValueError: no")
        };
        assert_eq!(
            result(&execution(Err(failure), "before\n"), Era::Legacy),
            json!({
                "content": [
                    {"type": "text", "text": "before\n"},
                    {"type": "text", "text": "ValueError: no (line 2)\n\nTraceback"},
                ],
                "structuredContent": {
                    "error": "ValueError: no", "kind": "exception", "line": 2, "traceback": "Traceback",
                },
                "isError": true,
            })
        );
    }

    #[test]
    fn pictures_are_images_and_other_files_are_resources() {
        let png = b"\x89PNG\r\n\x1a\n\0";
        let large = [&png[..], &vec![0; MAX_IMAGE_BYTES]].concat();
        let files: [(&str, &[u8]); 5] = [
            ("a b.csv", b"1,2"),
            ("figure-1.png", png),
            ("large.png", &large),
            ("liar.png", b"GIF89a"),
            ("raw", b"\xff"),
        ];
        let mut content =
            result(&execution(returned("null", &files), ""), Era::Legacy)["content"].take();
        let blob = content[4]["resource"]["blob"].take();
        assert_eq!(blob.as_str().unwrap().len(), large.len().div_ceil(3) * 4);
        assert_eq!(
            content,
            json!([
                {"type": "text", "text": "Files: figure-1.png, liar.png, a b.csv, large.png, raw"},
                {"type": "image", "data": "iVBORw0KGgoA", "mimeType": "image/png"},
                {"type": "image", "data": "R0lGODlh", "mimeType": "image/gif"},
                {"type": "resource", "resource": {"uri": "mainbox:///a%20b.csv", "mimeType": "text/csv", "text": "1,2"}},
                {"type": "resource", "resource": {"uri": "mainbox:///large.png", "mimeType": "image/png", "blob": null}},
                {"type": "resource", "resource": {"uri": "mainbox:///raw", "mimeType": "application/octet-stream", "blob": "/w=="}},
            ])
        );
    }
}
