//! Messages of MCP: whatever is sent, what is read is plain JSON, and what refuses it is JSON-RPC.
#![no_main]

use http::HeaderMap;
use http::header::HeaderValue;
use libfuzzer_sys::fuzz_target;
use mainbox::api::limits::RequestLimits;
use mainbox::mcp::message::{Message, Reply};
use mainbox::mcp::method::{Asked, cancelled};
use mainbox::mcp::revision::{Era, METHOD, NAME, VERSION};
use mainbox::mcp::tool;
use serde_json::Value;

const LIMITS: RequestLimits = RequestLimits { max_script_bytes: 4096, max_inputs: 5 };

fuzz_target!(|text: &[u8]| {
    let message = match Message::read(text) {
        Ok(message) => message,
        Err((id, error)) => {
            let reply = serde_json::to_value(Reply::error(id.as_ref(), &error)).unwrap();
            assert!(matches!(reply["error"]["code"].as_i64(), Some(-32700 | -32600)), "{reply}");
            assert!(reply.to_string().len() < 4096, "{reply}");
            return;
        }
    };
    let plain = serde_json::from_slice::<Value>(text).ok();
    if let (Some(plain), Some(id)) = (&plain, &message.id) {
        assert_eq!(plain["id"], serde_json::from_str::<Value>(id.text()).unwrap());
    }
    if let Some(plain) = &plain {
        assert_eq!(plain["method"], *message.method);
    }
    let _ = cancelled(&message);
    let Ok(params) = message.params() else { return };
    let name = plain.as_ref().and_then(|plain| plain["params"]["name"].as_str()).unwrap_or("");
    let mut headers = HeaderMap::new();
    for (header, value) in [(VERSION, "2026-07-28"), (METHOD, &*message.method), (NAME, name)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(header, value);
        }
    }
    for headers in [None, Some(&headers)] {
        let asked =
            Era::of(&message, &params, headers).and_then(|era| Asked::of(&message, &params, era));
        match asked {
            Ok(Asked::CallTool(arguments)) => {
                if let Ok(request) = tool::request(arguments.get(), LIMITS) {
                    assert!(request.script.len() <= LIMITS.max_script_bytes);
                }
            }
            Ok(_) => {}
            Err(error) => {
                let reply = serde_json::to_string(&Reply::error(message.id.as_ref(), &error));
                assert!(reply.unwrap().len() < 8192);
            }
        }
    }
});
