//! Notifications of the progress of a call:
//! <https://modelcontextprotocol.io/specification/2026-07-28/basic/patterns/progress>.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::message::{Id, Params};

/// The part of `_meta` that asks for notifications.
#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "progressToken")]
    token: Option<&'a RawValue>,
}

/// The token of a request whose client wants to hear of its progress: a string or a whole number. Others are ignored, since
/// a notification is never needed.
pub fn token(params: &Params<'_>) -> Option<Id> {
    let meta: Meta<'_> = serde_json::from_str(params.meta?.get()).ok()?;
    meta.token.and_then(Id::named_by)
}

/// The notifications of one call.
#[derive(Debug)]
pub struct Progress {
    token: Id,
    sent: u64,
}

#[derive(Serialize)]
struct Notification<'a> {
    jsonrpc: &'static str,
    method: &'static str,
    params: Details<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    progress_token: &'a Id,
    progress: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

impl Progress {
    /// Notifications with this token.
    pub fn new(token: Id) -> Progress {
        Progress { token, sent: 0 }
    }

    /// The next notification, as JSON on one line. `message` is what the script has printed. Nobody knows how far a script is,
    /// so the progress is the number of notifications, which rises as it must.
    pub fn next(&mut self, message: Option<&str>) -> String {
        self.sent += 1;
        let notification = Notification {
            jsonrpc: "2.0",
            method: "notifications/progress",
            params: Details { progress_token: &self.token, progress: self.sent, message },
        };
        serde_json::to_string(&notification).expect("BUG: a notification is plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::*;

    fn token_of(meta: &str) -> Option<String> {
        let text =
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"_meta":{meta}}}}}"#);
        let message = Message::read(text.as_bytes()).unwrap();
        token(&message.params().unwrap()).map(|token| token.text().to_owned())
    }

    #[test]
    fn a_token_is_a_string_or_a_whole_number() {
        for token in ["1", "-7", "\"a\""] {
            let meta = format!(r#"{{"progressToken":{token}}}"#);
            assert_eq!(token_of(&meta).as_deref(), Some(token));
        }
        let long = format!(r#"{{"progressToken":"{}"}}"#, "x".repeat(100_000));
        for meta in ["{}", r#"{"progressToken":null}"#, r#"{"progressToken":[1]}"#, &long, "3"] {
            assert_eq!(token_of(meta), None, "{}", meta.len());
        }
    }

    #[test]
    fn the_progress_of_notifications_rises() {
        let text =
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"progressToken":"a"}}}"#;
        let message = Message::read(text.as_bytes()).unwrap();
        let mut progress = Progress::new(token(&message.params().unwrap()).unwrap());
        let begins = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"a","progress""#;
        assert_eq!(progress.next(Some("out\n")), format!(r#"{begins}:1,"message":"out\n"}}}}"#));
        assert_eq!(progress.next(None), format!("{begins}:2}}}}"));
    }
}
