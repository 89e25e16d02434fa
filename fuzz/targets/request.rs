//! Bodies of requests: an accepted request has the values that a plain JSON parser finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainbox::api::limits::RequestLimits;
use mainbox::api::request::ExecuteRequest;
use serde_json::Value;

const MAX_SCRIPT_BYTES: usize = 4096;
const LIMITS: RequestLimits = RequestLimits { max_script_bytes: MAX_SCRIPT_BYTES, max_inputs: 5 };

fuzz_target!(|body: &[u8]| {
    if let Ok(request) = ExecuteRequest::from_json(body, LIMITS) {
        let plain: Value = match serde_json::from_slice(body) {
            Ok(plain) => plain,
            // An input may have numbers beyond any float, since it is passed on as text.
            Err(error) if error.to_string().starts_with("number out of range") => return,
            Err(error) => panic!("accepted as JSON, but: {error}"),
        };
        assert_eq!(plain["script"], request.script.as_str());
        assert!(request.script.len() <= MAX_SCRIPT_BYTES);
        assert_eq!(plain.get("input").is_some(), request.input.is_some());
        if let Some(input) = request.input {
            assert_eq!(plain["input"], serde_json::from_str::<Value>(input.get()).unwrap());
        }
        assert_eq!(plain["inputs"].is_array(), request.inputs.is_some());
        if let Some(inputs) = request.inputs {
            assert!(inputs.len() <= LIMITS.max_inputs && plain.get("input").is_none());
            let inputs: Vec<Value> =
                inputs.iter().map(|input| serde_json::from_str(input.get()).unwrap()).collect();
            assert_eq!(plain["inputs"], Value::from(inputs));
        }
        for (name, content) in request.files.iter() {
            assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")), "{name}");
            if let Some(text) = plain["files"][name].as_str() {
                assert_eq!(text.as_bytes(), content);
            }
        }
        assert!(
            request.timeout.is_none_or(|timeout| !timeout.is_zero() && timeout.as_secs() <= 300)
        );
    }
    if let Ok(request) = ExecuteRequest::from_python(body, MAX_SCRIPT_BYTES) {
        assert_eq!(request.script.as_bytes(), body);
    }
});
