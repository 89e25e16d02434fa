//! Standard output of commands.

use std::io::Write;

use super::error::CommandError;

/// Prints `text` to stdout.
pub(super) fn print(text: &str) -> Result<(), CommandError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CommandError::Stdout)
}
