//! Why a command failed.

use std::io;
use std::path::PathBuf;

use crate::api::files::FileError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The script, or a file for it, cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file has an invalid name.
    #[error("--file: {0}")]
    File(#[from] FileError),
    /// The directory for the returned files cannot be used.
    #[error("--outputs: {path}: {source}")]
    Outputs {
        /// The directory or a file in it.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Two arguments are `-`.
    #[error("only one of the script, --stdin and --inputs can be `-`, standard input")]
    TwiceStdin,
    /// A line of `--inputs` is not JSON.
    #[error("--inputs: line {line} is not valid JSON: {source}")]
    Inputs {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// `--input` is not JSON.
    #[error("--input is not valid JSON: {0}")]
    Input(serde_json::Error),
    /// The service does not answer.
    #[error("the service on port {port} does not answer: {source}")]
    Health {
        /// The port.
        port: u16,
        /// The system's answer.
        source: io::Error,
    },
    /// Standard error cannot be written.
    #[error("standard error: {0}")]
    Stderr(io::Error),
    /// Standard input cannot be read.
    #[error("standard input: {0}")]
    Stdin(io::Error),
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Stdout(io::Error),
}

impl CommandError {
    /// Returns whether an argument of the command is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            CommandError::Unreadable { .. }
                | CommandError::File(_)
                | CommandError::Outputs { .. }
                | CommandError::Input(_)
                | CommandError::Inputs { .. }
                | CommandError::TwiceStdin
        )
    }
}
