//! `mainbox run --inputs`: runs one script through the handler once for each line of a file.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderValue, Request};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::CommandError;
use super::output::print;
use super::run::{RequestBody, read_text, write_outputs};
use super::terminal::{SPINNER_INTERVAL, Terminal};
use crate::api::text::escaped_json;
use crate::handler::Handler;

/// The most bytes of inputs in one request. A body may have twice as many.
const MAX_INPUT_BYTES: usize = 4 << 20;

/// The last event of a live response.
#[derive(Deserialize)]
struct Last {
    results: Option<Vec<Box<RawValue>>>,
}

/// The part of a result that says whether `main` returned.
#[derive(Deserialize)]
struct Outcome {
    kind: Option<String>,
}

/// Runs the script of `body` once for each line of `file`, and prints each result as a line of JSON. The files of a result
/// go into a directory of `outputs` whose name is the number of the line, counted from 0. Returns whether `main` returned
/// for all.
///
/// # Errors
/// When something cannot be read, written or printed.
pub(super) async fn run(
    handler: &Handler,
    mut body: RequestBody,
    file: &Path,
    outputs: Option<&Path>,
) -> Result<bool, CommandError> {
    let inputs = read_inputs(&read_text(file)?)?;
    let mut progress = Progress {
        terminal: io::stderr().is_terminal().then(|| Terminal::new(io::stderr())),
        began: Instant::now(),
        done: 0,
        all: inputs.len(),
    };
    let (mut number, mut succeeded) = (0, true);
    for inputs in batches(inputs, handler.config().max_inputs) {
        body.inputs = Some(inputs);
        let request = super::local_request("/execute", body.to_json());
        match answer(handler, request, &mut progress).await? {
            Answer::Results(results) => {
                for result in results {
                    let outcome: Result<Outcome, _> = serde_json::from_str(result.get());
                    succeeded &= outcome.is_ok_and(|outcome| outcome.kind.is_none());
                    progress.hide()?;
                    print(&format!("{}\n", escaped_json(result.get())))?;
                    if let Some(outputs) = outputs {
                        let directory = outputs.join(number.to_string());
                        write_outputs(&directory, result.get().as_bytes())?;
                    }
                    number += 1;
                }
            }
            Answer::Refused(body) => {
                progress.hide()?;
                print(&format!("{}\n", escaped_json(&body)))?;
                return Ok(false);
            }
        }
    }
    progress.hide()?;
    Ok(succeeded)
}

/// The lines that are not blank.
fn read_inputs(text: &str) -> Result<Vec<Box<RawValue>>, CommandError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let input = RawValue::from_string(line.trim().to_owned());
            input.map_err(|source| CommandError::Inputs { line: index + 1, source })
        })
        .collect()
}

/// The inputs in groups, each small enough for a request.
fn batches(inputs: Vec<Box<RawValue>>, most: usize) -> Vec<Vec<Box<RawValue>>> {
    let (mut batches, mut bytes) = (Vec::<Vec<_>>::new(), 0);
    for input in inputs {
        bytes += input.get().len();
        match batches.last_mut() {
            Some(batch) if batch.len() < most && bytes <= MAX_INPUT_BYTES => batch.push(input),
            _ => {
                bytes = input.get().len();
                batches.push(vec![input]);
            }
        }
    }
    batches
}

enum Answer {
    Results(Vec<Box<RawValue>>),
    /// Nothing ran; the body of the response.
    Refused(String),
}

/// Handles `request` live, and counts the results that have come.
async fn answer(
    handler: &Handler,
    mut request: Request<Full<Bytes>>,
    progress: &mut Progress,
) -> Result<Answer, CommandError> {
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/x-ndjson"));
    let mut body = handler.handle(request).await.into_body();
    let mut ticks = tokio::time::interval(SPINNER_INTERVAL);
    let mut line = Vec::new();
    loop {
        let piece = tokio::select! {
            biased;
            piece = body.next() => piece,
            _ = ticks.tick() => {
                progress.show()?;
                continue;
            }
        };
        let Some(piece) = piece else { break };
        // An event may come in several pieces, and each ends with a line break.
        if line.ends_with(b"\n") {
            line.clear();
        }
        let is_new = line.is_empty();
        line.extend_from_slice(&piece);
        if is_new && line.starts_with(br#"{"event":"item","#) {
            progress.done += 1;
        }
    }
    let last: Option<Last> = serde_json::from_slice(&line).ok();
    Ok(match last.and_then(|last| last.results) {
        Some(results) => Answer::Results(results),
        None => Answer::Refused(String::from_utf8_lossy(&line).into_owned()),
    })
}

/// How far the inputs have come, on a terminal.
struct Progress {
    terminal: Option<Terminal<io::Stderr>>,
    began: Instant,
    done: usize,
    all: usize,
}

impl Progress {
    fn show(&mut self) -> Result<(), CommandError> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        terminal.progress(self.done, self.all, self.began.elapsed()).map_err(CommandError::Stderr)
    }

    fn hide(&mut self) -> Result<(), CommandError> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        terminal.finish().map_err(CommandError::Stderr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_lines_of_json_and_blank_lines_are_skipped() {
        let inputs = read_inputs("1\n\n {\"a\": [2]} \r\n\"x\"").unwrap();
        let texts: Vec<&str> = inputs.iter().map(|input| input.get()).collect();
        assert_eq!(texts, ["1", r#"{"a": [2]}"#, "\"x\""]);
        let error = read_inputs("1\n\n{").unwrap_err().to_string();
        assert!(error.starts_with("--inputs: line 3 is not valid JSON: "), "{error}");
    }

    #[test]
    fn a_batch_has_a_limit_of_inputs_and_of_bytes() {
        let sizes = |inputs: &[usize], most: usize| {
            let inputs = inputs.iter().map(|length| {
                RawValue::from_string(format!("\"{}\"", "x".repeat(length - 2))).unwrap()
            });
            let batches = batches(inputs.collect(), most);
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[3; 7], 3), [3, 3, 1]);
        assert_eq!(sizes(&[3 << 20, 1 << 20, 3, 5 << 20, 3], 9), [2, 1, 1, 1]);
        assert!(sizes(&[], 3).is_empty());
    }
}
