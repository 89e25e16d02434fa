//! Checks of JSON text that is passed on without being parsed.
//!
//! `serde_json`'s `RawValue` checks that text is well-formed without building a tree, but accepts any depth and any
//! escape. Deep text would overflow the stack of the next parser, and strict parsers reject a surrogate without its pair.

/// The deepest nesting of arrays and objects in a request and in a result. serde_json and other common parsers give up
/// at 128 levels, and the response wraps a result in one level of its own.
pub const MAX_DEPTH: usize = 100;

/// Returns whether `text` nests arrays and objects at most [`MAX_DEPTH`] levels deep. It counts brackets outside strings
/// only, so it is exact for well-formed JSON and safe for any other text.
pub fn is_shallow(text: &[u8]) -> bool {
    let mut depth = 0usize;
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return false;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => rest = after_string(rest),
            _ => {}
        }
    }
    true
}

/// Replaces the line breaks in well-formed JSON by spaces, so that it is one line. They only occur between its values: in
/// strings, JSON escapes them. A script chooses what is between the values of its result, and could forge a line.
pub fn join_lines(text: &mut [u8]) {
    let mut rest = text;
    while let Some(place) = memchr::memchr2(b'\n', b'\r', rest) {
        rest[place] = b' ';
        rest = &mut rest[place + 1..];
    }
}

/// The text behind the string that `text` continues. memchr scans a string at the speed of memory.
fn after_string(mut text: &[u8]) -> &[u8] {
    while let Some(place) = memchr::memchr2(b'"', b'\\', text) {
        if text[place] == b'"' {
            return &text[place + 1..];
        }
        text = text.get(place + 2..).unwrap_or(&[]);
    }
    &[]
}

/// Returns whether each surrogate that `text` escapes is one of a pair, as in `\ud83d\ude00`. It is exact for well-formed
/// JSON, where a backslash occurs in strings only. RFC 8259 leaves open what a parser does with a lone surrogate
/// (section 8.2): most replace it, strict ones reject the whole text.
pub fn pairs_surrogates(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some(place) = memchr::memchr(b'\\', rest) {
        rest = &rest[place..];
        rest = match escaped_unit(rest) {
            Some(0xD800..0xDC00) => match escaped_unit(&rest[6..]) {
                Some(0xDC00..0xE000) => &rest[12..],
                _ => return false,
            },
            Some(0xDC00..0xE000) => return false,
            Some(_) => &rest[6..],
            None => rest.get(2..).unwrap_or(&[]),
        };
    }
    true
}

/// The UTF-16 code unit that `text` begins with as an escape of six bytes, for example `\u00e9`.
fn escaped_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_become_spaces() {
        let mut text = *b"{\"a\":\r\n1,\n\"\\n\":[2]\n}";
        join_lines(&mut text);
        assert_eq!(&text, b"{\"a\":  1, \"\\n\":[2] }");
    }

    #[test]
    fn a_hundred_levels_pass_and_one_more_does_not() {
        assert!(is_shallow(format!("{}{}", "[".repeat(100), "]".repeat(100)).as_bytes()));
        assert!(!is_shallow("[".repeat(101).as_bytes()));
        assert!(!is_shallow(br#"{"a":"#.repeat(101).as_slice()));
    }

    #[test]
    fn brackets_in_strings_and_beside_each_other_do_not_count() {
        assert!(is_shallow(format!("[\"{}\\\"{}\"]", "[".repeat(200), "{".repeat(200)).as_bytes()));
        assert!(is_shallow("[],".repeat(500).as_bytes()));
    }

    #[test]
    fn unbalanced_text_is_scanned_to_its_end() {
        assert!(is_shallow(b"]]]]\"\\"));
    }

    #[test]
    fn surrogates_come_in_pairs() {
        for paired in
            [r#""\ud83d\ude00""#, r#""\u00e9\\ud83d""#, r#"["\uD83D\uDE00", "\n"]"#, r#""\\\"""#]
        {
            assert!(pairs_surrogates(paired.as_bytes()), "{paired}");
        }
        for lone in [
            r#""\ud83d""#,
            r#""\ude00""#,
            r#""\ud83d\ud83d\ude00""#,
            r#""\ud83d \ude00""#,
            r#""\ud83d\n""#,
        ] {
            assert!(!pairs_surrogates(lone.as_bytes()), "{lone}");
        }
    }
}
