//! Events of AWS Lambda: any JSON becomes a request or an error of one line, and a response in the form of the event.
#![no_main]

use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use mainbox::front::lambda::event;
use serde_json::value::RawValue;

fuzz_target!(|text: &str| {
    let Ok(raw) = RawValue::from_string(text.to_owned()) else { return };
    let form = event::form(&raw);
    match event::request(form, &raw) {
        Ok(request) => {
            // The path is empty if the text parses as the name of a host. No route has an empty path.
            let path = request.uri().path();
            assert!(path.is_empty() || path.starts_with('/') || path == "*", "{path}");
            let size = http_body::Body::size_hint(request.body()).exact().unwrap();
            assert!(size <= text.len() as u64);
            drop(request.into_body().boxed());
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
    let response = event::response(form, http::Response::new(b"{}".to_vec()));
    assert!(serde_json::from_str::<serde_json::Value>(response.get()).unwrap().is_object());
});
