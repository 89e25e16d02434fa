//! The shell front: what mainbox does as a command.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use super::manual;
use super::run::{RunArguments, run};
use crate::archive;
use crate::config::Config;
use crate::executor::{Executor, Health};
use crate::files::FileError;
use crate::handler::Handler;
use crate::python::Python;

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
    Run(RunArguments),
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
    /// Prints a script by which a shell completes mainbox's command line.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Prints the manual page, mainbox(1), with all settings.
    Man,
}

/// Why a script could not be run: one sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShellError {
    /// The script, or a file for it, could not be read.
    #[error("{path} cannot be read: {source}")]
    Unreadable {
        /// Where it was to be.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A file that cannot be among the others.
    #[error("--file: {0}")]
    File(#[from] FileError),
    /// What the script left cannot be kept.
    #[error("--outputs: {path}: {source}")]
    Outputs {
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
    /// The terminal is gone.
    #[error("standard error: {0}")]
    Terminal(std::io::Error),
    /// Standard output is gone.
    #[error("standard output: {0}")]
    Output(std::io::Error),
}

impl ShellError {
    /// Whether it is the caller's arguments that are wrong.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            ShellError::Unreadable { .. }
                | ShellError::File(_)
                | ShellError::Outputs { .. }
                | ShellError::Input(_)
        )
    }
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
        Command::Run(arguments) => run(handler, arguments).await,
        Command::Doctor => doctor(executor).await,
        // Done already: they need no executor.
        Command::Health | Command::Archive { .. } | Command::Completions { .. } | Command::Man => {
            Ok(true)
        }
    }
}

/// Does what `command` says, where that needs neither settings nor Python. Returns whether it was such a command.
///
/// # Errors
/// When nothing can be printed.
pub fn obey_at_once(command: Option<&Command>) -> Result<bool, ShellError> {
    let out = &mut std::io::stdout().lock();
    match command {
        Some(Command::Completions { shell }) => manual::completions(*shell, out),
        Some(Command::Man) => manual::manual(out),
        _ => return Ok(false),
    }
    .map_err(ShellError::Output)?;
    Ok(true)
}

/// Does what `command` says, where that needs no sandbox. Returns whether it succeeded, or nothing when it was no such
/// command.
///
/// # Errors
/// See [`ShellError`], [`PythonError`](crate::python::PythonError) and [`ArchiveError`](archive::ArchiveError).
pub fn obey_alone(
    command: Option<&Command>,
    config: &Config,
) -> Result<Option<bool>, Box<dyn std::error::Error>> {
    match command {
        Some(Command::Health) => Ok(Some(health(config.port)?)),
        Some(Command::Archive { file }) => {
            archive::make(&Python::find(&config.python)?, &config.preload, file)?;
            Ok(Some(true))
        }
        _ => Ok(None),
    }
}

/// Asks the service on `port` of this host how it is, and prints what it says. Returns whether it is healthy.
///
/// # Errors
/// When it does not answer in time.
fn health(port: u16) -> Result<bool, ShellError> {
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

pub(super) fn print(text: &str) -> Result<(), ShellError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(ShellError::Output)
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
