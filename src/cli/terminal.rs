//! The terminal during `mainbox run`: the output of the script as it comes, and a spinner or a progress bar.

use std::io::{self, Write};
use std::time::Duration;

use crate::api::text::controls_terminal;

/// How long a script runs before the spinner appears.
const SPINNER_DELAY: Duration = Duration::from_secs(1);
/// The time between two pictures of the spinner.
pub(super) const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
/// The width of a progress bar, characters.
const BAR_WIDTH: usize = 30;
/// Returns to the start of the line and erases it.
const ERASE: &str = "\r\x1b[K";

/// A terminal that shows what a script prints as text only, so that the script cannot control it.
pub(super) struct Terminal<W> {
    out: W,
    /// Whether the spinner or the bar is visible.
    spinning: bool,
    /// Whether the last line of the script has ended.
    line_ended: bool,
    /// Whether a `\r` waits, which may be the first half of a line break.
    returned: bool,
}

impl<W: Write> Terminal<W> {
    pub(super) fn new(out: W) -> Terminal<W> {
        Terminal { out, spinning: false, line_ended: true, returned: false }
    }

    /// Shows what the script has printed.
    pub(super) fn show(&mut self, printed: &str) -> io::Result<()> {
        if printed.is_empty() {
            return Ok(());
        }
        let waited = if self.returned { "\r" } else { "" };
        let mut text = format!("{waited}{printed}");
        // What comes next tells whether it ends a line.
        self.returned = text.ends_with('\r');
        if self.returned {
            text.pop();
        }
        let text = visible(&text);
        if text.is_empty() {
            return Ok(());
        }
        self.erase()?;
        self.line_ended = text.ends_with('\n');
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Shows the next picture of the spinner, if the script has been running for long and its last line has ended.
    pub(super) fn spin(&mut self, elapsed: Duration) -> io::Result<()> {
        if elapsed < SPINNER_DELAY || !self.line_ended {
            return Ok(());
        }
        self.spinning = true;
        let picture = elapsed.as_millis() / SPINNER_INTERVAL.as_millis();
        let spinner = SPINNER[picture as usize % SPINNER.len()];
        write!(self.out, "{ERASE}{spinner} {} s", elapsed.as_secs())?;
        self.out.flush()
    }

    /// Shows a bar of which `done` of `all` parts are full, once that took a while.
    pub(super) fn progress(
        &mut self,
        done: usize,
        all: usize,
        elapsed: Duration,
    ) -> io::Result<()> {
        if elapsed < SPINNER_DELAY {
            return Ok(());
        }
        self.spinning = true;
        let full = BAR_WIDTH * done.min(all) / all.max(1);
        let (full, rest) = ("#".repeat(full), ".".repeat(BAR_WIDTH - full));
        write!(self.out, "{ERASE}[{full}{rest}] {done}/{all}  {} s", elapsed.as_secs())?;
        self.out.flush()
    }

    /// Removes the spinner and ends the last line.
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

/// `text` as it is shown: characters that could control the terminal become pictures. A line may end with `\r\n`; alone,
/// `\r` would let later text overwrite this line.
fn visible(text: &str) -> String {
    let picture = |character| match character {
        '\n' | '\t' => character,
        '\0'..='\x1f' => char::from_u32(0x2400 + character as u32).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        _ if controls_terminal(character) => '\u{fffd}',
        _ => character,
    };
    text.replace("\r\n", "\n").chars().map(picture).collect()
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
    fn printed_text_cannot_control_the_terminal() {
        let text =
            shown(|terminal| terminal.show("a\tb\r\n\x1b]0;title\x07\x00\x7f\u{9b}31m\u{fffd}!"));
        assert_eq!(text, "a\tb\n\u{241b}]0;title\u{2407}\u{2400}\u{2421}\u{fffd}31m\u{fffd}!");
        let text = shown(|terminal| terminal.show("\u{61c}\u{200f}\u{2029}\u{202e}\u{2069}!"));
        assert_eq!(text, "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}!");
    }

    #[test]
    fn printed_text_cannot_overwrite_its_line() {
        let text = shown(|terminal| {
            terminal.show("rm -rf /\rls\r")?;
            terminal.show("\nnext\r")?;
            terminal.show("!\r\r\n")
        });
        assert_eq!(text, "rm -rf /\u{240d}ls\nnext\u{240d}!\u{240d}\n");
    }

    #[test]
    fn the_spinner_appears_late_and_is_erased() {
        let text = shown(|terminal| {
            terminal.spin(Duration::from_millis(999))?;
            terminal.spin(Duration::from_millis(1000))?;
            terminal.spin(Duration::from_millis(2100))?;
            terminal.show("half")?;
            terminal.spin(Duration::from_millis(3000))?;
            terminal.show(" whole\n")?;
            terminal.spin(Duration::from_millis(4000))?;
            terminal.finish()
        });
        assert_eq!(text, "\r\x1b[K⠋ 1 s\r\x1b[K⠙ 2 s\r\x1b[Khalf whole\n\r\x1b[K⠋ 4 s\r\x1b[K");
    }

    #[test]
    fn the_bar_grows_and_is_erased() {
        let text = shown(|terminal| {
            terminal.progress(1, 3, Duration::from_millis(900))?;
            terminal.progress(1, 3, Duration::from_millis(1200))?;
            terminal.progress(3, 3, Duration::from_millis(2200))?;
            terminal.finish()
        });
        let expected = "\r\x1b[K[##########....................] 1/3  1 s\r\x1b[K[##############################] 3/3  2 s\r\x1b[K";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_open_last_line_is_ended() {
        assert_eq!(shown(|terminal| terminal.show("x").and_then(|()| terminal.finish())), "x\n");
        assert_eq!(shown(Terminal::finish), "");
    }
}
