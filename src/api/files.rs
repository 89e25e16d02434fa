//! Files of a request and of a response: their names, their JSON form and their number.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text::{controls_terminal, quoted};

/// The largest number of files in a request, and in a response.
pub const MAX_FILES: usize = 100;
/// The longest file name, bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// The largest number of path parts in a name: directories and the file itself.
pub const MAX_NAME_PARTS: usize = 8;
/// A file on a tmpfs occupies whole pages of this size, bytes.
const PAGE_BYTES: u64 = 4096;

/// The directory below the working directory whose files are returned.
pub const OUTPUTS: &str = "outputs";

/// Why a file was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The name could leave the directory, or is not valid on every system.
    #[error(
        "invalid file name `{0}`: use a relative path of at most {MAX_NAME_BYTES} bytes and {MAX_NAME_PARTS} parts that every system can write: no empty part, no space at the beginning or end of a part, no period at its end, no control character, none of \\ : < > \" | ? * and no device name such as NUL"
    )]
    Name(String),
    /// The name is taken, or would turn another file into a directory.
    #[error("duplicate file name `{0}`, or one used as both a file and a directory")]
    Taken(String),
    /// There are more than [`MAX_FILES`].
    #[error("at most {MAX_FILES} files are allowed")]
    TooMany,
}

/// Files by name. A name never leads out of the directory that the files are written to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Adds a file.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn insert(&mut self, name: String, content: Vec<u8>) -> Result<(), FileError> {
        if !is_name(&name) {
            return Err(FileError::Name(quoted(&name).into_owned()));
        }
        if self.0.len() >= MAX_FILES {
            return Err(FileError::TooMany);
        }
        let beneath = format!("{name}/");
        let is_directory = self.0.range(beneath.clone()..).next();
        let is_directory = is_directory.is_some_and(|(other, _)| other.starts_with(&beneath));
        let mut above = name.match_indices('/').map(|(place, _)| &name[..place]);
        if is_directory
            || self.0.contains_key(&name)
            || above.any(|above| self.0.contains_key(above))
        {
            return Err(FileError::Taken(quoted(&name).into_owned()));
        }
        self.0.insert(name, content);
        Ok(())
    }

    /// Returns whether a file has this name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Returns whether there are no files.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every name and content, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, content)| (name.as_str(), content.as_slice()))
    }

    /// The space that the files occupy on a tmpfs, bytes.
    pub fn bytes_on_disk(&self) -> u64 {
        self.0.values().map(|content| (content.len() as u64).next_multiple_of(PAGE_BYTES)).sum()
    }

    /// The approximate size of the files as JSON, bytes. Used to reserve memory, never as a limit.
    pub fn bytes_as_json(&self) -> usize {
        self.0.iter().map(|(name, content)| name.len() + content.len() / 3 * 4 + 16).sum()
    }
}

/// Characters that Windows does not accept in a name.
const RESERVED: [char; 8] = ['\\', ':', '<', '>', '"', '|', '?', '*'];
/// Names that Windows takes for devices, whatever their extension:
/// <https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file>.
const DEVICES: [&str; 4] = ["CON", "PRN", "AUX", "NUL"];
/// The same, with a digit other than 0 behind them.
const NUMBERED_DEVICES: [&str; 2] = ["COM", "LPT"];

/// Returns whether a name stays inside the directory and can be saved on any system. `outputs.py` has the same rule.
fn is_name(name: &str) -> bool {
    let is_letter = |letter: char| !controls_terminal(letter) && !RESERVED.contains(&letter);
    name.len() <= MAX_NAME_BYTES
        && name.split('/').count() <= MAX_NAME_PARTS
        && name.split('/').all(is_part)
        && name.chars().all(is_letter)
}

/// Returns whether a part of a name can be saved on any system. `.` and `..` end with a period.
fn is_part(part: &str) -> bool {
    let has_edges = !part.starts_with(' ') && !part.ends_with([' ', '.']);
    !part.is_empty() && has_edges && !is_device(part)
}

fn is_device(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let is_numbered = stem
        .strip_suffix(['1', '2', '3', '4', '5', '6', '7', '8', '9', '¹', '²', '³'])
        .is_some_and(|device| NUMBERED_DEVICES.contains(&device));
    is_numbered || DEVICES.contains(&stem.as_str())
}

/// UTF-8 content becomes a string, other content `{"base64": ...}`.
impl Serialize for Files {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(Some(self.0.len()))?;
        for (name, content) in self.iter() {
            match std::str::from_utf8(content) {
                Ok(text) => object.serialize_entry(name, text)?,
                Err(_) => object
                    .serialize_entry(name, &Encoded { base64: BASE64_STANDARD.encode(content) })?,
            }
        }
        object.end()
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Files, D::Error> {
        deserializer.deserialize_map(FilesVisitor)
    }
}

struct FilesVisitor;

impl<'de> Visitor<'de> for FilesVisitor {
    type Value = Files;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object that maps file names to contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Files, A::Error> {
        let mut files = Files::default();
        while let Some(name) = object.next_key::<String>()? {
            let content = object.next_value::<Content>();
            let Content(content) = content.map_err(|error| {
                let error = error.to_string();
                A::Error::custom(format!("`{}`: {}", quoted(&name), quoted(&error)))
            })?;
            files.insert(name, content).map_err(A::Error::custom)?;
        }
        Ok(files)
    }
}

/// The JSON form of content that is not UTF-8.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encoded {
    base64: String,
}

/// The content of one file, in either JSON form.
struct Content(Vec<u8>);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Content, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string or {\"base64\": ...} as the content of a file")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Content, E> {
        Ok(Content(text.as_bytes().to_vec()))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Content, E> {
        Ok(Content(text.into_bytes()))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Content, A::Error> {
        let object = serde::de::value::MapAccessDeserializer::new(object);
        let Encoded { mut base64 } = Encoded::deserialize(object)?;
        // Many encoders break lines, as MIME asks for.
        base64.retain(|letter| !matches!(letter, '\r' | '\n'));
        let content = BASE64_STANDARD.decode(base64);
        content.map(Content).map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Result<Files, FileError> {
        let mut files = Files::default();
        for name in names {
            files.insert(String::from(*name), vec![])?;
        }
        Ok(files)
    }

    #[test]
    fn names_stay_inside_the_directory() {
        let longest = "x".repeat(MAX_NAME_BYTES);
        for name in [
            "a",
            "a.csv",
            "a/b/c/d/e/f/g/h",
            "é ü.txt",
            ".hidden",
            "-",
            "con1",
            "com",
            "COM0",
            "nul_",
            "x.nul",
            &longest,
        ] {
            assert_eq!(files(&[name]).map(|_| ()), Ok(()), "{name}");
        }
        let longer = "x".repeat(MAX_NAME_BYTES + 1);
        for name in [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "../a",
            "a/../b",
            "a/..",
            "a//b",
            "a/",
            "./a",
            "a\0b",
            "a\nb",
            "a\\b",
            "\u{9b}0m",
            "\u{202e}gnp.exe",
            "C:/Users/x.bat",
            "C:x",
            "what?",
            "a*",
            " a",
            "a ",
            "a/b /c",
            "a.",
            "...",
            "NUL",
            "nul.txt",
            "a/Con.tar.gz",
            "aux .c",
            "com1",
            "LPT9.x",
            "COM¹",
            "a/b/c/d/e/f/g/h/i",
            &longer,
        ] {
            let refused = FileError::Name(quoted(name).into_owned());
            assert_eq!(files(&[name]), Err(refused), "{name}");
        }
    }

    #[test]
    fn two_files_cannot_share_a_path() {
        assert!(files(&["a", "a.b", "ab", "b/c", "b/d", "b.c"]).is_ok());
        for (names, taken) in [
            (["a", "a"], "a"),
            (["a", "a/b"], "a/b"),
            (["a/b", "a"], "a"),
            (["a/b/c", "a/b"], "a/b"),
            (["a", "a/b/c"], "a/b/c"),
        ] {
            assert_eq!(files(&names), Err(FileError::Taken(String::from(taken))));
        }
        let names: Vec<String> = (0..=MAX_FILES).map(|number| number.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(files(&names[..MAX_FILES]).is_ok());
        assert_eq!(files(&names), Err(FileError::TooMany));
    }

    #[test]
    fn text_is_a_string_and_other_content_is_base64_in_both_directions() {
        let broken: Files = serde_json::from_str(r#"{"a":{"base64":"AQID\r\nBAU=\n"}}"#).unwrap();
        assert_eq!(broken.iter().collect::<Vec<_>>(), [("a", &[1, 2, 3, 4, 5][..])]);
        let text = r#"{"a":"é\n","b":{"base64":"/w=="},"c":""}"#;
        let files: Files = serde_json::from_str(text).unwrap();
        assert_eq!(files.iter().nth(1), Some(("b", &b"\xff"[..])));
        assert_eq!(serde_json::to_string(&files).unwrap(), text);
        assert_eq!(files.bytes_on_disk(), 8192);
    }

    #[test]
    fn a_malformed_file_is_refused_with_a_reason() {
        for (text, reason) in [
            ("[]", "invalid type: sequence, expected an object that maps file names to contents"),
            (
                r#"{"a":1}"#,
                "`a`: invalid type: integer `1`, expected a string or {\"base64\": ...} as the content of a file",
            ),
            (r#"{"a":{}}"#, "`a`: missing field `base64`"),
            (r#"{"a":{"base64":"","x":1}}"#, "`a`: unknown field `x`, expected `base64`"),
            (r#"{"a":{"base64":"?"}}"#, "`a`: Invalid symbol 63, offset 0."),
            (
                r#"{"a":"","a":""}"#,
                "duplicate file name `a`, or one used as both a file and a directory",
            ),
        ] {
            let error = serde_json::from_str::<Files>(text).unwrap_err().to_string();
            assert_eq!(error.split(" at line ").next(), Some(reason), "{text}");
        }
    }
}
