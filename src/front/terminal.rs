//! What somebody sees who waits for a script in a terminal: its output as it comes, and how long it has been running.

use std::io::{self, Write};
use std::time::Duration;

/// How long a script runs before it is worth a word.
const LONG: Duration = Duration::from_secs(1);
/// How often the spinner turns.
pub(super) const TURN: Duration = Duration::from_millis(100);

const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
/// To the beginning of the line, and erases it.
const ERASE: &str = "\r\x1b[K";

/// A terminal, of which a script gets to see nothing: what it prints is shown as text and controls nothing.
pub(super) struct Terminal<W> {
    out: W,
    /// Whether the spinner is there now.
    spinning: bool,
    /// Whether the script's last line has ended.
    line_ended: bool,
    /// The first bytes of a character whose others are still to come.
    rest: Vec<u8>,
}

impl<W: Write> Terminal<W> {
    pub(super) fn new(out: W) -> Terminal<W> {
        Terminal { out, spinning: false, line_ended: true, rest: Vec::new() }
    }

    /// Shows what a script has printed.
    pub(super) fn show(&mut self, printed: &[u8]) -> io::Result<()> {
        self.rest.extend_from_slice(printed);
        let whole = whole_characters(&self.rest);
        let text: String =
            String::from_utf8_lossy(&self.rest[..whole]).chars().map(harmless).collect();
        self.rest.drain(..whole);
        if text.is_empty() {
            return Ok(());
        }
        self.erase()?;
        self.line_ended = text.ends_with('\n');
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Turns the spinner, once a script has been running for long. It would be in the way of a line that has not ended.
    pub(super) fn turn(&mut self, elapsed: Duration) -> io::Result<()> {
        if elapsed < LONG || !self.line_ended {
            return Ok(());
        }
        self.spinning = true;
        let turn = elapsed.as_millis() / TURN.as_millis();
        let spinner = SPINNER[turn as usize % SPINNER.len()];
        write!(self.out, "{ERASE}{spinner} {} s", elapsed.as_secs())?;
        self.out.flush()
    }

    /// Leaves the terminal as a line that can be written on.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.erase()?;
        if !self.line_ended {
            self.out.write_all(b"\n")?;
        }
        self.out.flush()
    }

    fn erase(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.spinning) {
            self.out.write_all(ERASE.as_bytes())?;
        }
        Ok(())
    }
}

/// Bytes up to the end of the last character that is whole, or never will be.
fn whole_characters(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last();
    let unfinished = last.map_or(&[][..], |chunk| chunk.invalid());
    let may_go_on = std::str::from_utf8(unfinished).is_err_and(|error| error.error_len().is_none());
    if may_go_on { bytes.len() - unfinished.len() } else { bytes.len() }
}

/// A character as it may be shown: one that would control the terminal as its picture.
fn harmless(character: char) -> char {
    match character {
        '\n' | '\r' | '\t' => character,
        '\0'..='\x1f' => char::from_u32(0x2400 + character as u32).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        // Also what changes the direction of text, and with it what it seems to say.
        '\u{80}'..='\u{9f}'
        | '\u{200e}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        _ => character,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(act: impl FnOnce(&mut Terminal<Vec<u8>>) -> io::Result<()>) -> String {
        let mut terminal = Terminal::new(Vec::new());
        act(&mut terminal).unwrap();
        String::from_utf8(terminal.out).unwrap()
    }

    #[test]
    fn what_is_printed_controls_nothing() {
        let text =
            shown(|terminal| terminal.show(b"a\tb\r\n\x1b]0;title\x07\x00\x7f\xc2\x9b31m\xff!"));
        assert_eq!(text, "a\tb\r\n\u{241b}]0;title\u{2407}\u{2400}\u{2421}\u{fffd}31m\u{fffd}!");
    }

    #[test]
    fn characters_are_whole_however_they_come() {
        let text = shown(|terminal| {
            "é€🦀".bytes().try_for_each(|byte| terminal.show(&[byte]))?;
            terminal.show(b"\xe2\x82")?;
            terminal.show(b"x")
        });
        assert_eq!(text, "é€🦀\u{fffd}x");
    }

    #[test]
    fn the_spinner_comes_late_and_leaves_no_trace() {
        let text = shown(|terminal| {
            terminal.turn(Duration::from_millis(999))?;
            terminal.turn(Duration::from_millis(1000))?;
            terminal.turn(Duration::from_millis(2100))?;
            terminal.show(b"half")?;
            terminal.turn(Duration::from_millis(3000))?;
            terminal.show(b" whole\n")?;
            terminal.turn(Duration::from_millis(4000))?;
            terminal.finish()
        });
        assert_eq!(text, "\r\x1b[K⠋ 1 s\r\x1b[K⠙ 2 s\r\x1b[Khalf whole\n\r\x1b[K⠋ 4 s\r\x1b[K");
    }

    #[test]
    fn a_line_that_has_not_ended_is_ended() {
        assert_eq!(shown(|terminal| terminal.show(b"x").and_then(|()| terminal.finish())), "x\n");
        assert_eq!(shown(Terminal::finish), "");
    }
}
