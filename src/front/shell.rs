//! The shell front: one script through the same handler, and the doctor.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Parser, Subcommand};
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::json;
use serde_json::value::RawValue;

use crate::executor::{Executor, Health};
use crate::handler::{Handler, Trusted};

/// How long a service may take to say how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of its answer.
const MAX_HEALTH_BYTES: u64 = 4096;

/// Runs main() of a Python script that nobody trusts, and answers with its JSON and what it printed.
///
/// Without a command it serves HTTP on PORT (8080). The README lists the settings, all of them environment variables.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// What to do; serving HTTP when there is none.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What mainbox does besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs one script and prints the response body; exit code 0 on success, 1 otherwise.
    Run {
        /// The script, or `-` for standard input.
        script: PathBuf,
        /// JSON that is passed to main().
        #[arg(long, value_name = "JSON")]
        input: Option<String>,
    },
    /// Says which isolation this host gives and proves it; exit code 1 below the floor.
    Doctor,
    /// Writes the bytecode of everything that the modules of MAINBOX_PRELOAD import to one file, for MAINBOX_ARCHIVE. For
    /// the build of an image: no sandbox.
    Archive {
        /// The file to write; beside the packages, where the interpreter may read it.
        file: PathBuf,
    },
    /// Asks the service on PORT of this host how it is; exit code 0 when it is healthy, 1 otherwise.
    Health,
}

/// Why a script could not be run: one sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShellError {
    /// The script could not be read.
    #[error("{path} cannot be read: {source}")]
    Script {
        /// Where it was to be.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// `--input` is not JSON.
    #[error("--input is not valid JSON: {0}")]
    Input(serde_json::Error),
    /// The service does not answer.
    #[error("the service on port {port} does not answer: {source}")]
    Health {
        /// Where it should.
        port: u16,
        /// What happened instead.
        source: std::io::Error,
    },
    /// Standard output is gone.
    #[error("standard output: {0}")]
    Output(std::io::Error),
}

/// Does what `command` says. Returns whether it succeeded.
///
/// # Errors
/// See [`ShellError`].
pub async fn obey(
    command: Command,
    executor: &Arc<Executor>,
    handler: &Handler,
) -> Result<bool, ShellError> {
    match command {
        Command::Run { script, input } => run(handler, &script, input).await,
        Command::Doctor => doctor(executor).await,
        // Done already: they need no executor.
        Command::Health | Command::Archive { .. } => Ok(true),
    }
}

/// Asks the service on `port` of this host how it is, and prints what it says. Returns whether it is healthy.
///
/// # Errors
/// When it does not answer in time.
pub fn health(port: u16) -> Result<bool, ShellError> {
    let failed = |source| ShellError::Health { port, source };
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(failed)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT)).map_err(failed)?;
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .map_err(failed)?;
    let mut answer = String::new();
    stream.take(MAX_HEALTH_BYTES).read_to_string(&mut answer).map_err(failed)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    print(&format!("{body}\n"))?;
    Ok(head.starts_with("HTTP/1.1 200 "))
}

/// Runs the script at `path` and prints the response body. Returns whether `main` returned.
///
/// # Errors
/// When the script or the input cannot be read, or nothing can be printed.
async fn run(handler: &Handler, path: &Path, input: Option<String>) -> Result<bool, ShellError> {
    let script =
        read_script(path).map_err(|source| ShellError::Script { path: path.to_owned(), source })?;
    let mut body = json!({ "script": script }).to_string();
    if let Some(input) = input {
        let input = RawValue::from_string(input).map_err(ShellError::Input)?;
        body.truncate(body.len() - 1);
        body.push_str(&format!(",\"input\":{input}}}"));
    }
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static("/execute");
    request.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    request.extensions_mut().insert(Trusted);
    let response = handler.handle(request).await;
    let succeeded = response.status() == StatusCode::OK;
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    print(&format!("{}\n", String::from_utf8_lossy(&body)))?;
    Ok(succeeded)
}

fn print(text: &str) -> Result<(), ShellError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(ShellError::Output)
}

fn read_script(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut script = String::new();
        std::io::stdin().read_to_string(&mut script)?;
        return Ok(script);
    }
    std::fs::read_to_string(path)
}

/// Prints host, tier, layers and the findings of the self-test. Returns whether everything that is promised holds.
///
/// # Errors
/// When nothing can be printed.
async fn doctor(executor: &Arc<Executor>) -> Result<bool, ShellError> {
    let findings = executor.findings().await.unwrap_or_default();
    let sandbox = executor.sandbox();
    let mut lines = vec![
        format!("host       {}", host()),
        match executor.zygote() {
            Some(zygote) => format!("python     {}", zygote.python),
            None => String::from("python     does not start; see the messages above"),
        },
        format!("isolation  {}", sandbox.tier_name()),
        String::new(),
        String::from("layers"),
    ];
    for layer in &sandbox.layers {
        let mark = if layer.works { "yes" } else { "no " };
        lines.push(format!("  {mark}  {}: {}", layer.name, layer.detail));
    }
    lines.extend([String::new(), String::from("self-test")]);
    for finding in findings.iter() {
        let mark = if finding.held { "ok " } else { "BAD" };
        lines.push(format!("  {mark}  {}: {}", finding.promise, finding.answer));
    }
    print(&(lines.join("\n") + "\n"))?;
    Ok(executor.health() == Health::Healthy)
}

fn host() -> String {
    nix::sys::utsname::uname().map_or_else(
        |errno| errno.to_string(),
        |name| {
            let [system, release, machine] = [name.sysname(), name.release(), name.machine()]
                .map(|part| part.to_string_lossy().into_owned());
            format!("{system} {release} {machine}")
        },
    )
}
