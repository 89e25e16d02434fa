//! Text from strangers: how much of it is repeated, and which of its characters are shown.

use std::borrow::Cow;

/// How much of a text is repeated, characters.
const MAX_QUOTED: usize = 200;

/// `text`, or its beginning and its end if it is longer than 200 characters. An error that repeats what was sent at any
/// length would let a caller choose how much memory the response takes.
pub fn quoted(text: &str) -> Cow<'_, str> {
    let length = if text.len() <= MAX_QUOTED { text.len() } else { text.chars().count() };
    if length <= MAX_QUOTED {
        return Cow::Borrowed(text);
    }
    let head: String = text.chars().take(MAX_QUOTED / 2).collect();
    let tail: String = text.chars().skip(length - MAX_QUOTED / 2).collect();
    Cow::Owned(format!("{head}[... {} characters left out ...]{tail}", length - MAX_QUOTED))
}

/// Whether a character can move the cursor, send a command to the terminal, or change the direction of text and so what
/// it seems to say. Line breaks and tabs are among them; the caller decides which of these to keep.
pub fn controls_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' // Arabic letter mark
            | '\u{200e}'..='\u{200f}' // left-to-right and right-to-left marks
            | '\u{2028}'..='\u{2029}' // line and paragraph separators
            | '\u{202a}'..='\u{202e}' // embeddings and overrides
            | '\u{2066}'..='\u{2069}') // isolates
}

/// JSON with every character that controls a terminal as an escape sequence. It has the same meaning as `json`.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    if json.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            // White space between values. Within strings, JSON escapes these already.
            '\0'..='\x1f' => text.push(' '),
            _ if controls_terminal(character) => text += &format!("\\u{:04x}", character as u32),
            _ => text.push(character),
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_its_beginning_and_its_end() {
        for short in ["", "a", &"é".repeat(200)] {
            assert_eq!(quoted(short), short);
        }
        let long = format!("a{}z", "é".repeat(10_000));
        let expected =
            format!("a{}[... 9802 characters left out ...]{}z", "é".repeat(99), "é".repeat(99));
        assert_eq!(quoted(&long), expected);
    }

    #[test]
    fn escaped_json_has_the_same_meaning_and_cannot_control_the_terminal() {
        let json = "{\"a\":\n \"\u{7f}\u{9b}\u{61c}\u{200e}\u{2028}\u{202e}\u{2066}é\"}";
        let escaped = escaped_json(json);
        assert_eq!(escaped, r#"{"a":  "\u007f\u009b\u061c\u200e\u2028\u202e\u2066é"}"#);
        let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(value(&escaped), value(json));
    }
}
