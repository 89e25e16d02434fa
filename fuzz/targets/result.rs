//! Frames with the outcome of a run: an accepted result is JSON for any parser, and a failure has a kind that a script can
//! cause.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainbox::api::catalogue::Kind;
use mainbox::api::files::Files;
use mainbox::executor::frames::Frame;
use mainbox::executor::outcome::{keep_file, of_frame};
use serde_json::Value;
use serde_json::de::Deserializer;

const ROOM: usize = 1000;

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, payload)) = bytes.split_first() else { return };
    let mut files = Files::default();
    let file = Frame { kind: *kind, payload: payload.to_vec() };
    if let Some(room) = keep_file(file, &mut files, ROOM) {
        let (name, content) = files.iter().next().unwrap();
        assert_eq!(content.len() + room, ROOM);
        assert!(payload[2..].starts_with(name.as_bytes()) && payload.ends_with(content));
    }
    match of_frame(Frame { kind: *kind, payload: payload.to_vec() }, 64) {
        Ok(value) => {
            assert_eq!(*kind, b'V');
            assert_eq!(value.get().as_bytes(), payload.trim_ascii());
            // Numbers beyond any float are passed on as text. Only a parser that needs floats rejects them. serde_json itself
            // gives the one key of an object this meaning when it parses into `Value`, which the service does not do.
            if value.get().contains("$serde_json::private::RawValue") {
                return;
            }
            let parsed: Result<Value, _> =
                serde::Deserialize::deserialize(&mut Deserializer::from_str(value.get()));
            match parsed {
                Ok(parsed) => assert!(depth(&parsed) <= 100),
                Err(error) => assert!(error.to_string().starts_with("number out of range")),
            }
        }
        Err(failure) => assert!(!matches!(
            failure.kind,
            Kind::Internal | Kind::Busy | Kind::Timeout | Kind::InvalidRequest
        )),
    }
});
