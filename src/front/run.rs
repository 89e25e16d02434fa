//! One script from the shell, through the same handler.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::shell::{ShellError, print};
use super::terminal::{TURN, Terminal};
use crate::executor::outcome::Live;
use crate::files::Files;
use crate::handler::{Handler, Trusted};

/// What to run, and with what.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The script, or `-` for standard input.
    script: PathBuf,
    /// JSON that is passed to main().
    #[arg(long, value_name = "JSON")]
    input: Option<String>,
    /// A file for the script's working directory, under its own name; can be given more than once.
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// A new or empty directory for what the script leaves in outputs/.
    #[arg(long, value_name = "DIRECTORY")]
    outputs: Option<PathBuf>,
}

#[derive(Serialize)]
struct Body {
    script: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Files::is_empty")]
    files: Files,
}

/// The part of an answer that is kept in a directory.
#[derive(Deserialize)]
struct Left {
    #[serde(default)]
    files: Files,
}

/// Runs a script and prints the response body. Returns whether `main` returned.
///
/// # Errors
/// When something cannot be read, kept or printed.
pub(super) async fn run(handler: &Handler, arguments: RunArguments) -> Result<bool, ShellError> {
    let body = Body {
        script: read_script(&arguments.script)?,
        input: arguments.input.map(RawValue::from_string).transpose().map_err(ShellError::Input)?,
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
        watched(handler, request).await.map_err(ShellError::Terminal)?
    } else {
        handler.handle(request).await
    };
    let succeeded = response.status() == StatusCode::OK;
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    print(&escaped(&String::from_utf8_lossy(&body)))?;
    if let Some(outputs) = &arguments.outputs {
        keep(outputs, &body)?;
    }
    Ok(succeeded)
}

/// JSON as a line in which a terminal finds nothing but text: what of a script could control one is escaped.
fn escaped(json: &str) -> String {
    let mut line = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        match character {
            // White space between values: in strings they are escaped already.
            '\0'..='\x1f' => line.push(' '),
            '\u{7f}'..='\u{9f}' => line += &format!("\\u{:04x}", character as u32),
            _ => line.push(character),
        }
    }
    line.push('\n');
    line
}

/// Answers `request` while somebody looks on at standard error.
async fn watched(
    handler: &Handler,
    mut request: Request<Full<Bytes>>,
) -> io::Result<Response<Full<Bytes>>> {
    let (live, mut printed) = mpsc::unbounded_channel();
    request.extensions_mut().insert(Live(live));
    let mut terminal = Terminal::new(io::stderr());
    let began = Instant::now();
    let mut turns = tokio::time::interval(TURN);
    let mut answering = std::pin::pin!(handler.handle(request));
    let response = loop {
        tokio::select! {
            biased;
            Some(printed) = printed.recv() => terminal.show(&printed)?,
            response = &mut answering => break response,
            _ = turns.tick() => terminal.turn(began.elapsed())?,
        }
    };
    while let Ok(printed) = printed.try_recv() {
        terminal.show(&printed)?;
    }
    terminal.finish()?;
    Ok(response)
}

fn read_script(path: &Path) -> Result<String, ShellError> {
    let read = if path == Path::new("-") {
        let mut script = String::new();
        io::stdin().read_to_string(&mut script).map(|_| script)
    } else {
        fs::read_to_string(path)
    };
    read.map_err(|source| ShellError::Unreadable { path: path.to_owned(), source })
}

fn read_files(paths: &[PathBuf]) -> Result<Files, ShellError> {
    let mut files = Files::default();
    for path in paths {
        let content = fs::read(path)
            .map_err(|source| ShellError::Unreadable { path: path.to_owned(), source })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, content)?;
    }
    Ok(files)
}

/// A script chooses the names in it, so nothing that matters may be there already.
fn make_empty(directory: &Path) -> Result<(), ShellError> {
    let failed = |source| ShellError::Outputs { path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(failed)?;
    match fs::read_dir(directory).map_err(failed)?.next() {
        None => Ok(()),
        Some(_) => Err(failed(io::Error::other("it is not empty"))),
    }
}

fn keep(directory: &Path, body: &[u8]) -> Result<(), ShellError> {
    let left: Left =
        serde_json::from_slice(body).expect("BUG: answers are JSON, and files have names");
    for (name, content) in left.files.iter() {
        let path = directory.join(name);
        let parent = path.parent().unwrap_or(directory);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, content))
            .map_err(|source| ShellError::Outputs { path: path.clone(), source })?;
    }
    Ok(())
}
