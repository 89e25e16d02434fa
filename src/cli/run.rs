//! `mainbox run`: runs one script through the handler.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::arguments::RunArguments;
use super::error::CommandError;
use super::output::{controls_terminal, print};
use super::terminal::{SPINNER_INTERVAL, Terminal};
use crate::api::files::Files;
use crate::executor::output_capture::OutputSink;
use crate::handler::{Handler, Trusted};

#[derive(Serialize)]
struct Body {
    script: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Files::is_empty")]
    files: Files,
}

/// The part of a response that is written to a directory.
#[derive(Deserialize)]
struct Returned {
    #[serde(default)]
    files: Files,
}

/// Runs a script and prints the response body. Returns whether `main` returned.
///
/// # Errors
/// When something cannot be read, written or printed.
pub(super) async fn run(handler: &Handler, arguments: RunArguments) -> Result<bool, CommandError> {
    let body = Body {
        script: read_script(&arguments.script)?,
        input: arguments
            .input
            .map(RawValue::from_string)
            .transpose()
            .map_err(CommandError::Input)?,
        files: read_files(&arguments.file)?,
    };
    if let Some(outputs) = &arguments.outputs {
        make_empty(outputs)?;
    }
    let body = serde_json::to_vec(&body).expect("BUG: a request is plain data");
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/execute");
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request.extensions_mut().insert(Trusted);
    let response = if io::stderr().is_terminal() {
        run_with_terminal(handler, request).await.map_err(CommandError::Stderr)?
    } else {
        handler.handle(request).await
    };
    let succeeded = response.status() == StatusCode::OK;
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    print(&escaped(&String::from_utf8_lossy(&body)))?;
    if let Some(outputs) = &arguments.outputs {
        write_outputs(outputs, &body)?;
    }
    Ok(succeeded)
}

/// JSON as one line of characters that do not control the terminal. It has the same meaning as `json`.
fn escaped(json: &str) -> String {
    let mut line = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        match character {
            // White space between values. Within strings, JSON escapes these already.
            '\0'..='\x1f' => line.push(' '),
            _ if controls_terminal(character) => line += &format!("\\u{:04x}", character as u32),
            _ => line.push(character),
        }
    }
    line.push('\n');
    line
}

/// Handles `request` and shows the output of the script on stderr while it runs.
async fn run_with_terminal(
    handler: &Handler,
    mut request: Request<Full<Bytes>>,
) -> io::Result<Response<Full<Bytes>>> {
    let (sender, mut printed) = mpsc::unbounded_channel();
    request.extensions_mut().insert(OutputSink(sender));
    let mut terminal = Terminal::new(io::stderr());
    let began = Instant::now();
    let mut ticks = tokio::time::interval(SPINNER_INTERVAL);
    let mut answering = std::pin::pin!(handler.handle(request));
    let response = loop {
        tokio::select! {
            biased;
            Some(printed) = printed.recv() => terminal.show(&printed)?,
            response = &mut answering => break response,
            _ = ticks.tick() => terminal.spin(began.elapsed())?,
        }
    };
    while let Ok(printed) = printed.try_recv() {
        terminal.show(&printed)?;
    }
    terminal.finish()?;
    Ok(response)
}

fn read_script(path: &Path) -> Result<String, CommandError> {
    let read = if path == Path::new("-") {
        let mut script = String::new();
        io::stdin().read_to_string(&mut script).map(|_| script)
    } else {
        fs::read_to_string(path)
    };
    read.map_err(|source| CommandError::Unreadable { path: path.to_owned(), source })
}

fn read_files(paths: &[PathBuf]) -> Result<Files, CommandError> {
    let mut files = Files::default();
    for path in paths {
        let content = fs::read(path)
            .map_err(|source| CommandError::Unreadable { path: path.to_owned(), source })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, content)?;
    }
    Ok(files)
}

/// Creates the directory. An existing one must be empty, since the script chooses the names of the files in it.
fn make_empty(directory: &Path) -> Result<(), CommandError> {
    let failed = |source| CommandError::Outputs { path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(failed)?;
    match fs::read_dir(directory).map_err(failed)?.next() {
        None => Ok(()),
        Some(_) => Err(failed(io::Error::other("the directory is not empty"))),
    }
}

fn write_outputs(directory: &Path, body: &[u8]) -> Result<(), CommandError> {
    let returned: Returned =
        serde_json::from_slice(body).expect("BUG: responses are JSON, and their files have names");
    for (name, content) in returned.files.iter() {
        let path = directory.join(name);
        let parent = path.parent().unwrap_or(directory);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, content))
            .map_err(|source| CommandError::Outputs { path: path.clone(), source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_response_has_the_same_meaning_and_cannot_control_the_terminal() {
        let json = "{\"a\":\n \"\u{7f}\u{9b}\u{61c}\u{200e}\u{2028}\u{202e}\u{2066}é\"}";
        let line = escaped(json);
        assert_eq!(line, concat!(r#"{"a":  "\u007f\u009b\u061c\u200e\u2028\u202e\u2066é"}"#, "\n"));
        let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(value(&line), value(json));
    }
}
