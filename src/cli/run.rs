//! `mainbox run`: runs one script through the handler.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::arguments::RunArguments;
use super::error::CommandError;
use super::output::print;
use super::run_inputs;
use super::terminal::{SPINNER_INTERVAL, Terminal};
use crate::api::files::Files;
use crate::api::text::escaped_json;
use crate::executor::live_output::{LiveOutput, Stream};
use crate::handler::Handler;
use crate::handler::body::Body;

/// The body of a request.
#[derive(Serialize)]
pub(super) struct RequestBody {
    script: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<String>,
    #[serde(skip_serializing_if = "Files::is_empty")]
    files: Files,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    collect: Vec<String>,
}

impl RequestBody {
    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("BUG: a request is plain data")
    }
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
    check_standard_input(&arguments)?;
    let body = RequestBody {
        script: read_text(&arguments.script)?,
        input: arguments
            .input
            .map(RawValue::from_string)
            .transpose()
            .map_err(CommandError::Input)?,
        stdin: arguments.stdin.as_deref().map(read_text).transpose()?,
        entry: arguments.entry,
        files: read_files(&arguments.file)?,
        collect: arguments.collect,
    };
    if let Some(outputs) = &arguments.outputs {
        make_empty(outputs)?;
    }
    if let Some(file) = &arguments.inputs {
        return run_inputs::run(handler, body, file, arguments.outputs.as_deref()).await;
    }
    let request = super::local_request("/execute", body.to_json());
    let response = if io::stderr().is_terminal() {
        run_with_terminal(handler, request).await.map_err(CommandError::Stderr)?
    } else {
        handler.handle(request).await
    };
    let succeeded = response.status() == StatusCode::OK;
    let body = response.into_body().collected().await;
    print(&format!("{}\n", escaped_json(&String::from_utf8_lossy(&body))))?;
    if let Some(outputs) = &arguments.outputs {
        write_outputs(outputs, &body)?;
    }
    Ok(succeeded)
}

/// Handles `request` and shows the output of the script on stderr while it runs.
async fn run_with_terminal(
    handler: &Handler,
    mut request: Request<Full<Bytes>>,
) -> io::Result<Response<Body>> {
    let live = LiveOutput::default();
    request.extensions_mut().insert(live.clone());
    let mut terminal = Terminal::new(io::stderr());
    let began = Instant::now();
    let mut ticks = tokio::time::interval(SPINNER_INTERVAL);
    let mut answering = std::pin::pin!(handler.handle(request));
    let response = loop {
        tokio::select! {
            biased;
            () = live.changed() => show(&mut terminal, &live, false)?,
            response = &mut answering => break response,
            _ = ticks.tick() => terminal.spin(began.elapsed())?,
        }
    };
    show(&mut terminal, &live, true)?;
    terminal.finish()?;
    Ok(response)
}

fn show(terminal: &mut Terminal<io::Stderr>, live: &LiveOutput, is_last: bool) -> io::Result<()> {
    Stream::ALL
        .into_iter()
        .try_for_each(|stream| terminal.show(&live.take(stream, usize::MAX, is_last)))
}

/// Refuses a second `-`: standard input can be read once.
fn check_standard_input(arguments: &RunArguments) -> Result<(), CommandError> {
    let RunArguments { script, stdin, inputs, .. } = arguments;
    let read = [Some(script), stdin.as_ref(), inputs.as_ref()].into_iter().flatten();
    match read.filter(|path| *path == Path::new("-")).count() {
        0 | 1 => Ok(()),
        _ => Err(CommandError::TwiceStdin),
    }
}

/// Reads a file, or standard input for `-`.
pub(super) fn read_text(path: &Path) -> Result<String, CommandError> {
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

pub(super) fn write_outputs(directory: &Path, body: &[u8]) -> Result<(), CommandError> {
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
