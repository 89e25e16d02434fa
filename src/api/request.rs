//! The request of `POST /execute`, read and checked.

use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::catalogue::{Failure, Kind};
use super::collect::Collect;
use super::files::{Files, OUTPUTS};
use super::json_text;
use super::limits::{MAX_TIMEOUT_SECONDS, RequestLimits, timeout_from_seconds};
use super::text::quoted;

/// A request to run a script.
#[derive(Debug)]
pub struct ExecuteRequest {
    /// Python source: not blank, no NUL character, within the server's limit.
    pub script: String,
    /// The argument of `main`, as the JSON text that was sent. `None` calls `main()` without an argument.
    pub input: Option<Box<RawValue>>,
    /// The inputs, if the script is to be run once for each. Then there is no `input`.
    pub inputs: Option<Vec<Box<RawValue>>>,
    /// What the script reads from its standard input; `None` is empty.
    pub stdin: Option<String>,
    /// How the script is run; `None` if the request does not say.
    pub entry: Option<Entry>,
    /// Files to write to the working directory before the script starts.
    pub files: Files,
    /// Which files come back besides those in `outputs/`.
    pub collect: Collect,
    /// The requested wall time limit. The server may allow less.
    pub timeout: Option<Duration>,
    /// The requested memory limit, MB. The server may allow less.
    pub memory_mb: Option<u64>,
}

/// How a script is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// Its function `main` is called, and the result is what that returns.
    #[default]
    Main,
    /// It is run as a program, with `__name__` set to `__main__`. The result is `null`.
    Script,
    /// The worker finds out, since a language model may send either: a script that has no `main`, or calls it itself, is
    /// run as a program. A request to `/execute` cannot ask for it.
    Auto,
}

impl Entry {
    /// The entry with this name; `None` if there is none.
    pub fn named(name: &str) -> Option<Entry> {
        match name {
            "main" => Some(Entry::Main),
            "script" => Some(Entry::Script),
            _ => None,
        }
    }
}

/// The fields of a body, not yet read. Reading each by itself lets an error name the field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    script: &'a RawValue,
    #[serde(default, deserialize_with = "present")]
    input: Option<Box<RawValue>>,
    #[serde(borrow, default)]
    inputs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stdin: Option<&'a RawValue>,
    #[serde(borrow, default)]
    entry: Option<&'a RawValue>,
    #[serde(borrow, default)]
    files: Option<&'a RawValue>,
    #[serde(borrow, default)]
    collect: Option<&'a RawValue>,
    #[serde(borrow, default)]
    limits: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits<'a> {
    #[serde(borrow, default)]
    timeout_seconds: Option<&'a RawValue>,
    #[serde(borrow, default)]
    memory_mb: Option<&'a RawValue>,
}

/// Tells `"input": null`, which calls `main(None)`, from an absent `input`, which calls `main()`.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(value).map(Some)
}

/// Reads a field that must begin with the character `opening`. Otherwise the error says that `name` must be `wanted`.
fn read<'a, T: Deserialize<'a>>(
    value: &'a RawValue,
    name: &str,
    opening: char,
    wanted: &str,
) -> Result<T, Failure> {
    // Not left to serde, which would describe Rust's types, and accept an array with the fields in order.
    if !value.get().starts_with(opening) {
        return Err(Failure::invalid_request(format!("{name} must be {wanted}")));
    }
    serde_json::from_str(value.get()).map_err(|error| {
        // serde_json counts the position from the start of the field, which would mislead the caller.
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        // The errors of files quote names by themselves, and add the rule for names.
        let text = if ["files", "collect"].contains(&name) { text.into() } else { quoted(text) };
        Failure::invalid_request(format!("{name}: {text}"))
    })
}

/// Reads an array of at most `most` values. Further ones are not kept.
fn read_inputs(array: &RawValue, most: usize) -> Result<Vec<Box<RawValue>>, Failure> {
    if !array.get().starts_with('[') {
        return Err(Failure::invalid_request("inputs must be an array"));
    }
    AtMost(most).deserialize(&mut serde_json::Deserializer::from_str(array.get())).map_err(|_| {
        let error = format!("inputs has more elements than its limit of {most}");
        Failure::invalid_request(error)
    })
}

/// Reads an array of at most this many values. The text is well-formed, so only a longer array is an error.
struct AtMost(usize);

impl<'de> DeserializeSeed<'de> for AtMost {
    type Value = Vec<Box<RawValue>>;

    fn deserialize<D: Deserializer<'de>>(self, array: D) -> Result<Self::Value, D::Error> {
        array.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AtMost {
    type Value = Vec<Box<RawValue>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an array of at most {} values", self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = array.next_element()? {
            if values.len() == self.0 {
                return Err(A::Error::invalid_length(self.0 + 1, &self));
            }
            values.push(value);
        }
        Ok(values)
    }
}

/// Reads a number, or `null` as absent. `accept` returns `None` for a number that is not accepted.
fn read_number<'a, T: Deserialize<'a>, U>(
    value: Option<&'a RawValue>,
    name: &str,
    wanted: &str,
    accept: impl FnOnce(T) -> Option<U>,
) -> Result<Option<U>, Failure> {
    let Some(value) = value else { return Ok(None) };
    let accepted = serde_json::from_str(value.get()).ok().and_then(accept);
    accepted.map(Some).ok_or_else(|| Failure::invalid_request(format!("{name} must be {wanted}")))
}

impl ExecuteRequest {
    /// Reads an `application/json` body.
    ///
    /// # Errors
    /// `invalid_request` or `payload_too_large`, with a sentence that names the problem.
    pub fn from_json(body: &[u8], limits: RequestLimits) -> Result<ExecuteRequest, Failure> {
        let RequestLimits { max_script_bytes, max_inputs } = limits;
        if !json_text::is_shallow(body) {
            let limit = json_text::MAX_DEPTH;
            return Err(Failure::invalid_request(format!(
                "The body is nested deeper than {limit} levels"
            )));
        }
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(match serde_json::from_slice::<IgnoredAny>(body) {
                Ok(_) => Failure::invalid_request("The body must be a JSON object"),
                Err(error) => not_json(&error),
            });
        }
        let body: Body<'_> = serde_json::from_slice(body).map_err(|error| {
            if error.classify() != Category::Data {
                return not_json(&error);
            }
            let text = error.to_string();
            Failure::invalid_request(format!("The request is not valid: {}", quoted(&text)))
        })?;
        let script = read(body.script, "script", '"', "a string")?;
        let inputs = body.inputs.map(|inputs| read_inputs(inputs, max_inputs)).transpose()?;
        if inputs.is_some() && body.input.is_some() {
            return Err(Failure::invalid_request("The request has both `input` and `inputs`"));
        }
        let stdin = body.stdin.map(|stdin| read(stdin, "stdin", '"', "a string")).transpose()?;
        let stdin = stdin.map(|stdin| check_stdin(stdin, max_script_bytes)).transpose()?;
        let entry = body.entry.map(|entry| read::<String>(entry, "entry", '"', ENTRIES));
        let entry = entry.transpose()?.map(|entry| check_entry(&entry)).transpose()?;
        let object = "an object that maps file names to contents";
        let files = body.files.map(|files| read(files, "files", '{', object));
        let files: Files = files.transpose()?.unwrap_or_default();
        if files.contains(OUTPUTS) {
            return Err(Failure::invalid_request(format!(
                "files: `{OUTPUTS}` is reserved for the directory of returned files"
            )));
        }
        let patterns = "an array of patterns such as \"*.csv\"";
        let collect = body.collect.map(|collect| read(collect, "collect", '[', patterns));
        let collect: Collect = collect.transpose()?.unwrap_or_default();
        let limits = body.limits.map(|limits| read(limits, "limits", '{', "an object"));
        let limits: Limits<'_> = limits.transpose()?.unwrap_or_default();
        let timeout = read_number(
            limits.timeout_seconds,
            "limits.timeout_seconds",
            "a number above 0",
            |seconds: f64| timeout_from_seconds(seconds.min(MAX_TIMEOUT_SECONDS)),
        )?;
        let memory_mb = read_number(
            limits.memory_mb,
            "limits.memory_mb",
            "a whole number of at least 1",
            |megabytes: u64| (megabytes > 0).then_some(megabytes),
        )?;
        let script = check_script(script, max_script_bytes)?;
        Ok(ExecuteRequest {
            script,
            input: body.input,
            inputs,
            stdin,
            entry,
            files,
            collect,
            timeout,
            memory_mb,
        })
    }

    /// Reads a `text/x-python` body, which is the script itself.
    ///
    /// # Errors
    /// `invalid_request` or `payload_too_large`, with a sentence that names the problem.
    pub fn from_python(body: &[u8], max_script_bytes: usize) -> Result<ExecuteRequest, Failure> {
        check_encoding(body)?;
        let script = std::str::from_utf8(body).map_err(|error| {
            Failure::invalid_request(format!("The script is not valid UTF-8: {error}"))
        })?;
        let script = check_script(script.to_owned(), max_script_bytes)?;
        Ok(ExecuteRequest {
            script,
            input: None,
            inputs: None,
            stdin: None,
            entry: None,
            files: Files::default(),
            collect: Collect::default(),
            timeout: None,
            memory_mb: None,
        })
    }

    /// Adds `entry` and `stdin` from the query of the URL, unless the body has told them. Other names are left to proxies
    /// and clients.
    ///
    /// # Errors
    /// `invalid_request` or `payload_too_large`, with a sentence that names the problem.
    pub fn with_query(
        mut self,
        query: &str,
        max_script_bytes: usize,
    ) -> Result<ExecuteRequest, Failure> {
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "stdin" => {
                    let stdin = check_stdin(value.into_owned(), max_script_bytes)?;
                    self.stdin.get_or_insert(stdin);
                }
                "entry" => {
                    let entry = check_entry(&value)?;
                    self.entry.get_or_insert(entry);
                }
                _ => {}
            }
        }
        Ok(self)
    }
}

fn not_json(error: &serde_json::Error) -> Failure {
    Failure::invalid_request(format!("The body is not valid JSON: {error}"))
}

const ENTRIES: &str = "`main` or `script`";

fn check_entry(name: &str) -> Result<Entry, Failure> {
    Entry::named(name).ok_or_else(|| Failure::invalid_request(format!("entry must be {ENTRIES}")))
}

fn check_stdin(stdin: String, max_bytes: usize) -> Result<String, Failure> {
    if stdin.len() > max_bytes {
        let error = format!("stdin has {} bytes; the limit is {max_bytes}", stdin.len());
        return Err(Failure::new(Kind::PayloadTooLarge, error));
    }
    Ok(stdin)
}

/// Refuses a script that declares another encoding than UTF-8 in its first two lines, as PEP 263 describes.
fn check_encoding(body: &[u8]) -> Result<(), Failure> {
    for line in body.split(|byte| *byte == b'\n').take(2) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_start_matches([' ', '\t', '\x0c', '\u{feff}']);
        let Some((_, declared)) = line.strip_prefix('#').and_then(|line| line.split_once("coding"))
        else {
            continue;
        };
        let Some(name) = declared.strip_prefix([':', '=']) else { continue };
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        let name: String =
            name.trim_start_matches([' ', '\t']).chars().take_while(|c| is_name(*c)).collect();
        let plain = name.to_ascii_lowercase().replace('_', "-");
        if !["", "utf-8", "utf8", "utf-8-sig", "ascii", "us-ascii"].contains(&plain.as_str()) {
            let error =
                format!("The script declares the encoding {}; send it as UTF-8", quoted(&name));
            return Err(Failure::invalid_request(error));
        }
    }
    Ok(())
}

fn check_script(script: String, max_bytes: usize) -> Result<String, Failure> {
    if script.trim_ascii().is_empty() {
        return Err(Failure::invalid_request("The script is empty"));
    }
    if script.contains('\0') {
        return Err(Failure::invalid_request("The script contains a NUL character"));
    }
    if script.len() > max_bytes {
        let error = format!("The script has {} bytes; the limit is {max_bytes}", script.len());
        return Err(Failure::new(Kind::PayloadTooLarge, error));
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits { max_script_bytes: 9, max_inputs: 3 };

    #[test]
    fn inputs_are_counted_before_they_are_kept() {
        let read = |inputs: &str| {
            let body = format!(r#"{{"script":"x","inputs":{inputs}}}"#);
            let request = ExecuteRequest::from_json(body.as_bytes(), LIMITS);
            request.map(|request| request.inputs.unwrap()).map_err(|failure| failure.error)
        };
        let values: Vec<String> = read(r#"[1, null, {"a": [2]}]"#)
            .unwrap()
            .iter()
            .map(|value| value.get().into())
            .collect();
        assert_eq!(values, ["1", "null", r#"{"a": [2]}"#]);
        assert!(read("[]").unwrap().is_empty());
        let too_many = "inputs has more elements than its limit of 3";
        assert_eq!(read("[1,2,3,4]").unwrap_err(), too_many);
        for inputs in ["null", "{}", "3"] {
            let expected = if inputs == "null" { None } else { Some("inputs must be an array") };
            let body = format!(r#"{{"script":"x","inputs":{inputs}}}"#);
            let failure = ExecuteRequest::from_json(body.as_bytes(), LIMITS).err();
            assert_eq!(
                failure.as_ref().map(|failure| failure.error.as_str()),
                expected,
                "{inputs}"
            );
        }
        let both = br#"{"script":"x","input":1,"inputs":[1]}"#;
        let failure = ExecuteRequest::from_json(both, LIMITS).unwrap_err();
        assert_eq!(failure.error, "The request has both `input` and `inputs`");
    }

    #[test]
    fn a_null_input_differs_from_an_absent_one() {
        let with = ExecuteRequest::from_json(br#"{"script":"x","input":null}"#, LIMITS).unwrap();
        assert_eq!(with.input.unwrap().get(), "null");
        assert!(ExecuteRequest::from_json(br#"{"script":"x"}"#, LIMITS).unwrap().input.is_none());
    }

    #[test]
    fn an_encoding_other_than_utf_8_is_refused_by_name() {
        let read = |body: &str| ExecuteRequest::from_python(body.as_bytes(), 99);
        for body in
            ["# coding: utf-8\nx", "#!/x\n# -*- coding: UTF_8 -*-\nx", "x\ny\n# coding: cp1252"]
        {
            assert!(read(body).is_ok(), "{body}");
        }
        let failure = read("#!/x\n# -*- coding: latin-1 -*-\nx").unwrap_err();
        assert_eq!(failure.error, "The script declares the encoding latin-1; send it as UTF-8");
    }

    #[test]
    fn the_query_of_a_bare_script_contains_entry_and_stdin() {
        let read = |query: &str| ExecuteRequest::from_python(b"x", 4).unwrap().with_query(query, 4);
        let request = read("entry=script&stdin=a+b%0A").unwrap();
        assert_eq!((request.entry, request.stdin.as_deref()), (Some(Entry::Script), Some("a b\n")));
        assert_eq!(read("a=b").unwrap().entry, None);
        for (query, error) in [
            ("entry=x", "entry must be `main` or `script`"),
            ("stdin=12345", "stdin has 5 bytes; the limit is 4"),
        ] {
            assert_eq!(read(query).unwrap_err().error, error);
        }
    }

    #[test]
    fn a_body_that_is_not_an_object_is_told_so_without_a_rust_type() {
        for body in ["3", "[]", "null", "\"x\"", " true "] {
            let failure = ExecuteRequest::from_json(body.as_bytes(), LIMITS).unwrap_err();
            assert_eq!(failure.error, "The body must be a JSON object", "{body}");
        }
        let failure = ExecuteRequest::from_json(b"[1,", LIMITS).unwrap_err();
        assert!(failure.error.starts_with("The body is not valid JSON: EOF"), "{}", failure.error);
    }
}
