//! Starts mainbox: parses the command line, reads the configuration, establishes the sandbox, and runs a command or a
//! front.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mainbox::cli::arguments::Arguments;
use mainbox::cli::error::CommandError;
use mainbox::cli::{self, UnsandboxedError};
use mainbox::config::choices::Platform;
use mainbox::config::{Config, ConfigError};
use mainbox::executor::{Executor, Needed};
use mainbox::front::http::{self, ListenError};
use mainbox::front::lambda::{self, LambdaError};
use mainbox::front::shutdown;
use mainbox::handler::Handler;
use mainbox::python::interpreter::{Python, PythonError};
use mainbox::sandbox::probe::Probe;
use mainbox::sandbox::scratch::ScratchError;
use mainbox::sandbox::{Sandbox, SandboxError, sys};
use mainbox::telemetry::log;

/// As good as for ever, and short enough for any clock.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Why mainbox could not start, or a command could not run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// The command line; clap prints it in its own form.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The interpreter.
    #[error(transparent)]
    Python(#[from] PythonError),
    /// A command that needs a sandbox or a terminal.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A command that needs no sandbox.
    #[error(transparent)]
    Unsandboxed(#[from] UnsandboxedError),
    /// The address to listen on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The directory for scratch directories.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The Lambda runtime API.
    #[error(transparent)]
    Lambda(#[from] LambdaError),
    /// The runtime, its signals or its listener.
    #[error("the runtime failed: {0}")]
    Runtime(#[from] io::Error),
    /// A signal arrived while a command was running.
    #[error("interrupted")]
    Interrupted,
    /// Python, or its first worker, does not start.
    #[error("no worker could be started: {0}")]
    NoWorker(String),
}

impl StartError {
    /// The exit code: 2 for a setting or an argument that the user must change, else 1.
    fn exit_code(&self) -> u8 {
        match self {
            StartError::Arguments(_)
            | StartError::Config(_)
            | StartError::Python(_)
            | StartError::Unsandboxed(UnsandboxedError::Python(_)) => 2,
            StartError::Command(error) if error.is_usage() => 2,
            _ => 1,
        }
    }
}

fn main() -> ExitCode {
    let ended = start();
    log::flush();
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // This also handles `--help` and `--version`, which clap prints to stdout with exit code 0.
        Err(StartError::Arguments(error)) => error.exit(),
        Err(error) => {
            log::write_last(&format!("mainbox: {error}\n"));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Starts mainbox and runs it to its end. Returns whether the command succeeded. The sandbox is probed before the
/// runtime exists, while the process has one thread, since the probe forks.
fn start() -> Result<bool, StartError> {
    let arguments = Arguments::parse(std::env::args_os())?;
    if let Some(command) = &arguments.command
        && cli::run_without_config(command)?
    {
        return Ok(true);
    }
    let config = Config::from_env(&arguments.settings)?;
    let serves_lambda = arguments.command.is_none() && config.platform == Platform::Lambda;
    match &arguments.command {
        Some(_) => log::for_command(config.log),
        None if serves_lambda => log::for_lambda(config.log),
        None => log::for_service(config.log),
    }
    if let Some(command) = &arguments.command
        && let Some(succeeded) = cli::run_without_sandbox(command, &config)?
    {
        return Ok(succeeded);
    }
    let python = Python::find(&config.python)?;
    let serves_http = arguments.command.is_none() && !serves_lambda;
    let listener = serves_http.then(|| http::listen(config.host, config.port)).transpose()?;
    let ends_with_stdin = arguments.command.is_none() && config.end_with_stdin;
    let sandbox = Sandbox::establish(&config, Probe::of_host(&config, &python)?)?;
    if let Err(error) = sys::set_non_dumpable() {
        tracing::warn!(%error, "cannot become non-dumpable");
    }
    log::write_in_background()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(FOREVER)
        .build()?;
    runtime.block_on(async {
        // Without a thread that waits for blocking work, tokio panics if it cannot create one, and a script that shares the
        // uid of the service may be using up its threads.
        tokio::task::spawn_blocking(|| ()).await.expect("BUG: nothing panics or is aborted");
        let needed = arguments.command.as_ref().map_or(Needed::All, cli::needed_zygotes);
        let executor = Executor::start(Arc::new(config), Arc::new(sandbox), python, needed);
        let handler = Handler::new(Arc::clone(&executor));
        let shutdown = shutdown::requested(ends_with_stdin)?;
        match (arguments.command, listener) {
            (Some(command), _) => tokio::select! {
                succeeded = cli::run(command, &executor, &handler) => Ok(succeeded?),
                () = shutdown => Err(StartError::Interrupted),
            },
            (None, None) => tokio::select! {
                served = lambda::serve(Arc::clone(&executor), handler) => Ok(served.map(|()| true)?),
                () = shutdown => Ok(true),
                error = executor.never_starts() => Err(StartError::NoWorker(error)),
            },
            (None, Some(listener)) => tokio::select! {
                served = http::serve(listener, handler, shutdown) => Ok(served.map(|()| true)?),
                error = executor.never_starts() => Err(StartError::NoWorker(error)),
            },
        }
    })
}
