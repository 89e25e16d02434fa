//! Files that come with a request and go with an answer: their names, their form in JSON, their number.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Files of a request, and of an answer, at the most.
pub const MAX_FILES: usize = 100;
/// Bytes of a name.
pub const MAX_NAME_BYTES: usize = 255;
/// Directories in a name, and the file itself.
pub const MAX_NAME_PARTS: usize = 8;
/// What a file takes in a directory at least: it is given whole pages.
const PAGE_BYTES: u64 = 4096;

/// Where a script leaves what is to come back, beneath its working directory.
pub const OUTPUTS: &str = "outputs";

/// Why a file cannot be among the others: one sentence each.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A name that could leave the directory, or that not every system takes.
    #[error(
        "`{0}` is no name of a file: it must be relative, with parts that are neither empty nor `.` nor `..`, without control characters and backslashes, of at most {MAX_NAME_BYTES} bytes and {MAX_NAME_PARTS} parts"
    )]
    Name(String),
    /// The same name again, or one that makes a directory of another file.
    #[error("`{0}` is there twice, or is a file and a directory at once")]
    Taken(String),
    /// More than there may be.
    #[error("there may be at most {MAX_FILES} files")]
    TooMany,
}

/// Files by their names, which cannot leave the directory that they are laid in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Takes one more file.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn insert(&mut self, name: String, content: Vec<u8>) -> Result<(), FileError> {
        if !is_name(&name) {
            return Err(FileError::Name(name));
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
            return Err(FileError::Taken(name));
        }
        self.0.insert(name, content);
        Ok(())
    }

    /// Whether one has this name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, content)| (name.as_str(), content.as_slice()))
    }

    /// Bytes that they take in a directory.
    pub fn bytes_on_disk(&self) -> u64 {
        self.0.values().map(|content| (content.len() as u64).next_multiple_of(PAGE_BYTES)).sum()
    }

    /// Bytes that they have as JSON, about.
    pub fn bytes_as_json(&self) -> usize {
        self.0.iter().map(|(name, content)| name.len() + content.len() / 3 * 4 + 16).sum()
    }
}

/// Whether a name stays in the directory, and is one wherever a caller may save it.
fn is_name(name: &str) -> bool {
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    let is_letter = |letter: char| !letter.is_control() && letter != '\\';
    name.len() <= MAX_NAME_BYTES
        && name.split('/').count() <= MAX_NAME_PARTS
        && name.split('/').all(is_part)
        && name.chars().all(is_letter)
}

/// A text is a string, everything else `{"base64": ...}`.
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
        formatter.write_str("an object from names of files to their content")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Files, A::Error> {
        let mut files = Files::default();
        while let Some(name) = object.next_key::<String>()? {
            let Content(content) = object.next_value()?;
            files
                .insert(name, content)
                .map_err(|error| A::Error::custom(format!("files: {error}")))?;
        }
        Ok(files)
    }
}

/// What is not text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encoded {
    base64: String,
}

/// One file as JSON has it.
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
        let Encoded { base64 } = Encoded::deserialize(object)?;
        let content = BASE64_STANDARD.decode(base64);
        content.map(Content).map_err(|error| A::Error::custom(format!("files: {error}")))
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
    fn names_stay_in_their_directory() {
        let longest = "x".repeat(MAX_NAME_BYTES);
        for name in ["a", "a.csv", "a/b/c/d/e/f/g/h", "é ü.txt", "...", ".hidden", "-", &longest]
        {
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
            "a/b/c/d/e/f/g/h/i",
            &longer,
        ] {
            assert_eq!(files(&[name]), Err(FileError::Name(String::from(name))), "{name}");
        }
    }

    #[test]
    fn no_two_files_are_at_the_same_place() {
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
    fn text_is_a_string_and_the_rest_is_base64_both_ways() {
        let text = r#"{"a":"é\n","b":{"base64":"/w=="},"c":""}"#;
        let files: Files = serde_json::from_str(text).unwrap();
        assert_eq!(files.iter().nth(1), Some(("b", &b"\xff"[..])));
        assert_eq!(serde_json::to_string(&files).unwrap(), text);
        assert_eq!(files.bytes_on_disk(), 8192);
    }

    #[test]
    fn what_is_no_file_is_refused_with_a_reason() {
        for (text, reason) in [
            (
                "[]",
                "invalid type: sequence, expected an object from names of files to their content",
            ),
            (
                r#"{"a":1}"#,
                "invalid type: integer `1`, expected a string or {\"base64\": ...} as the content of a file",
            ),
            (r#"{"a":{}}"#, "missing field `base64`"),
            (r#"{"a":{"base64":"","x":1}}"#, "unknown field `x`, expected `base64`"),
            (r#"{"a":{"base64":"?"}}"#, "files: Invalid symbol 63, offset 0."),
            (
                r#"{"a":"","a":""}"#,
                "files: `a` is there twice, or is a file and a directory at once",
            ),
        ] {
            let error = serde_json::from_str::<Files>(text).unwrap_err().to_string();
            assert_eq!(error.split(" at line ").next(), Some(reason), "{text}");
        }
    }
}
