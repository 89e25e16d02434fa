//! Standard output of commands.

use std::io::Write;

use super::error::CommandError;

/// Prints `text` to stdout.
pub(super) fn print(text: &str) -> Result<(), CommandError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CommandError::Stdout)
}

/// Whether a character can move the cursor, send a command to the terminal, or change the direction of text and so what
/// it seems to say. Line breaks and tabs are among them; the caller decides which of these to keep.
pub(super) fn controls_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' // Arabic letter mark
            | '\u{200e}'..='\u{200f}' // left-to-right and right-to-left marks
            | '\u{2028}'..='\u{2029}' // line and paragraph separators
            | '\u{202a}'..='\u{202e}' // embeddings and overrides
            | '\u{2066}'..='\u{2069}') // isolates
}
