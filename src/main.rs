//! Reads the configuration, establishes the sandbox, makes the executor, picks the front.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use mainbox::config::{Config, Platform};
use mainbox::executor::Executor;
use mainbox::front::shell::{Arguments, ShellError};
use mainbox::front::{http, lambda, shell};
use mainbox::handler::Handler;
use mainbox::log;
use mainbox::python::{Python, PythonError};
use mainbox::sandbox::probe::Probe;
use mainbox::sandbox::{Sandbox, sys};

type Failure = Box<dyn std::error::Error>;

/// The script failed, the service could not be started, or it is not healthy.
const EXIT_FAILURE: u8 = 1;
/// Bad configuration, or bad arguments, for which clap uses the same.
const EXIT_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match shell::obey_at_once(arguments.command.as_ref()) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => {}
        Err(error) => return stop(&error, EXIT_FAILURE),
    }
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => return stop(&error, EXIT_CONFIGURATION),
    };
    match &arguments.command {
        Some(_) => log::for_shell(),
        None if config.platform == Platform::Lambda => log::for_lambda(),
        None => log::for_service(),
    }
    match start(config, arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILURE),
        Err(error) if error.is::<PythonError>() => stop(error.as_ref(), EXIT_CONFIGURATION),
        Err(error) if error.downcast_ref().is_some_and(ShellError::is_usage) => {
            stop(error.as_ref(), EXIT_CONFIGURATION)
        }
        Err(error) => stop(error.as_ref(), EXIT_FAILURE),
    }
}

fn stop(error: &dyn std::error::Error, code: u8) -> ExitCode {
    // Whoever read it may be gone.
    let _ = writeln!(std::io::stderr(), "mainbox: {error}");
    ExitCode::from(code)
}

/// The sandbox is probed before the runtime exists, while the process has one thread.
fn start(config: Config, arguments: Arguments) -> Result<bool, Failure> {
    if let Some(succeeded) = shell::obey_alone(arguments.command.as_ref(), &config)? {
        return Ok(succeeded);
    }
    let python = Python::find(&config.python)?;
    let serves_http = arguments.command.is_none() && config.platform != Platform::Lambda;
    let listener = serves_http.then(|| http::listen(config.port)).transpose()?;
    let sandbox = Sandbox::establish(&config, Probe::of_host(&config, &python)?)?;
    if let Err(error) = sys::set_non_dumpable() {
        tracing::warn!(%error, "this process stays dumpable");
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let executor = Executor::start(Arc::new(config), Arc::new(sandbox), python);
        let handler = Handler::new(Arc::clone(&executor));
        let interrupted = http::shutdown_signal()?;
        match (arguments.command, listener) {
            (Some(command), _) => tokio::select! {
                succeeded = shell::obey(command, &executor, &handler) => Ok(succeeded?),
                () = interrupted => Err("interrupted".into()),
            },
            (None, None) => tokio::select! {
                served = lambda::serve(Arc::clone(&executor), handler) => Ok(served.map(|()| true)?),
                () = interrupted => Ok(true),
                () = executor.never_starts() => Err("no worker could be started".into()),
            },
            (None, Some(listener)) => tokio::select! {
                served = http::serve(listener, handler, interrupted) => Ok(served.map(|()| true)?),
                () = executor.never_starts() => Err("no worker could be started".into()),
            },
        }
    })
}
