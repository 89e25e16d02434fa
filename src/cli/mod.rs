//! The command line: everything mainbox does as a command.

pub mod arguments;
mod doctor;
pub mod error;
mod health;
mod kernel_hint;
mod manual;
mod mcp;
mod output;
mod run;
mod run_inputs;
mod terminal;

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::Full;

use self::arguments::Command;
use self::error::CommandError;
use crate::config::Config;
use crate::executor::harness::MODULES;
use crate::executor::{Executor, Needed};
use crate::handler::{Handler, Trusted};
use crate::python::bytecode_archive::{self, ArchiveError};
use crate::python::interpreter::{Python, PythonError};

/// Why a command that needs no sandbox failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnsandboxedError {
    /// The command itself.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// There is no interpreter.
    #[error(transparent)]
    Python(#[from] PythonError),
    /// The archive was not written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Runs a command that needs neither a configuration nor Python. Returns whether `command` was one.
///
/// # Errors
/// When nothing can be printed.
pub fn run_without_config(command: &Command) -> Result<bool, CommandError> {
    let out = &mut std::io::stdout().lock();
    match command {
        Command::Completions { shell } => manual::completions(*shell, out),
        Command::Man => manual::manual(out),
        Command::Run(_)
        | Command::Doctor
        | Command::Mcp
        | Command::Archive { .. }
        | Command::Health => return Ok(false),
    }
    .map_err(CommandError::Stdout)?;
    Ok(true)
}

/// Returns which zygotes a command needs. `mainbox run` has one script, which needs one of them.
pub fn needed_zygotes(command: &Command) -> Needed {
    if matches!(command, Command::Run(_)) { Needed::None } else { Needed::All }
}

/// Runs a command that needs no sandbox. Returns whether it succeeded, or `None` if `command` needs one.
///
/// # Errors
/// See [`UnsandboxedError`].
pub fn run_without_sandbox(
    command: &Command,
    config: &Config,
) -> Result<Option<bool>, UnsandboxedError> {
    match command {
        Command::Health => Ok(Some(health::health(config)?)),
        Command::Archive { file } => {
            let python = Python::find(&config.python)?;
            bytecode_archive::write(&python, &config.preload, MODULES, file)?;
            Ok(Some(true))
        }
        Command::Run(_)
        | Command::Doctor
        | Command::Mcp
        | Command::Completions { .. }
        | Command::Man => Ok(None),
    }
}

/// Runs a command. Returns whether it succeeded.
///
/// # Errors
/// See [`CommandError`].
pub async fn run(
    command: Command,
    executor: &Arc<Executor>,
    handler: &Handler,
) -> Result<bool, CommandError> {
    match command {
        Command::Run(arguments) => run::run(handler, arguments).await,
        Command::Doctor => doctor::doctor(executor).await,
        Command::Mcp => mcp::serve(handler).await,
        // These have run before, since they need no executor.
        Command::Health | Command::Archive { .. } | Command::Completions { .. } | Command::Man => {
            Ok(true)
        }
    }
}

/// A request of the command line to its own handler, with a JSON body. It needs no API key.
fn local_request(path: &'static str, body: Vec<u8>) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(path);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request.extensions_mut().insert(Trusted);
    request
}
