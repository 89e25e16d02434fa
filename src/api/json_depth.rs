//! The nesting depth of JSON text that is passed on without being parsed.
//!
//! `serde_json`'s `RawValue` checks that text is well-formed without building a tree, but accepts any depth. Deep text
//! would overflow the stack of the next parser, so the depth is bounded here.

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
