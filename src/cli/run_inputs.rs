//! `mainbox run --inputs`: runs one script through the handler once for each line of a file.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Instant;

use futures_util::{StreamExt, stream};
use http::StatusCode;
use serde_json::value::RawValue;

use super::error::CommandError;
use super::output::print;
use super::run::{RequestBody, read_text, write_outputs};
use super::terminal::{SPINNER_INTERVAL, Terminal};
use crate::api::text::escaped_json;
use crate::handler::Handler;

/// Runs the script of `body` once for each line of `file`, and prints the result of each as a line of JSON, in their order.
/// The files of a result go into a directory of `outputs` whose name is the number of the input, counted from 0. Returns
/// whether `main` returned for all.
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
        all: inputs.len(),
    };
    let requests = inputs.into_iter().map(|input| {
        body.input = Some(input);
        super::local_request("/execute", body.to_json())
    });
    let answers = stream::iter(requests).map(|request| handler.handle(request));
    let mut answers = answers.buffered(handler.slots());
    let mut ticks = tokio::time::interval(SPINNER_INTERVAL);
    let (mut done, mut succeeded) = (0, true);
    loop {
        let answer = tokio::select! {
            biased;
            answer = answers.next() => answer,
            _ = ticks.tick() => {
                progress.show(done)?;
                continue;
            }
        };
        progress.hide()?;
        let Some(answer) = answer else { return Ok(succeeded) };
        succeeded &= answer.status() == StatusCode::OK;
        let answer = answer.into_body().collected().await;
        print(&format!("{}\n", escaped_json(&String::from_utf8_lossy(&answer))))?;
        if let Some(outputs) = outputs {
            write_outputs(&outputs.join(done.to_string()), &answer)?;
        }
        done += 1;
    }
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

/// How far the inputs have come, on a terminal.
struct Progress {
    terminal: Option<Terminal<io::Stderr>>,
    began: Instant,
    all: usize,
}

impl Progress {
    fn show(&mut self, done: usize) -> Result<(), CommandError> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        terminal.progress(done, self.all, self.began.elapsed()).map_err(CommandError::Stderr)
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
}
