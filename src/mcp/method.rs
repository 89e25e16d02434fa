//! The methods that are served, by era, and what each of them asks for.

use serde::Serialize;
use serde_json::value::RawValue;

use super::message::{Id, Message, Params, RpcError, string};
use super::revision::{Era, LEGACY, MODERN};
use super::tool;
use crate::api::text::quoted;

/// How long a client may keep the list of tools, milliseconds. It changes with the settings and the packages.
const LIST_TTL_MS: u64 = 300_000;

/// What a request asks for.
#[derive(Debug)]
pub enum Asked<'a> {
    /// What the service is and can do.
    Discover,
    /// The same, as the handshake of the legacy era; the answer names this revision.
    Initialize(&'static str),
    /// A sign of life.
    Ping,
    /// The tools.
    ListTools,
    /// A run of `run_python` with these arguments, a JSON object.
    CallTool(&'a RawValue),
}

impl<'a> Asked<'a> {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// [`RpcError::UnknownMethod`] or [`RpcError::InvalidParams`].
    pub fn of(message: &Message<'_>, params: &Params<'a>, era: Era) -> Result<Asked<'a>, RpcError> {
        match (&*message.method, era) {
            ("server/discover", Era::Modern) => Ok(Asked::Discover),
            ("initialize", Era::Legacy) => Ok(Asked::Initialize(settled(params)?)),
            ("ping", Era::Legacy) => Ok(Asked::Ping),
            ("tools/list", _) => match params.cursor {
                None => Ok(Asked::ListTools),
                Some(_) => Err(invalid("The list of tools has one page; cursor is unknown")),
            },
            ("tools/call", _) => call(params),
            (method, _) => Err(RpcError::UnknownMethod(quoted(method).into_owned())),
        }
    }
}

fn invalid(error: &str) -> RpcError {
    RpcError::InvalidParams(String::from(error))
}

/// The revision that the service and a client of the legacy era both speak: the one asked for, or else the newest.
fn settled(params: &Params<'_>) -> Result<&'static str, RpcError> {
    let version = params.protocol_version.and_then(string);
    let version = version.ok_or_else(|| invalid("protocolVersion must be a string"))?;
    Ok(LEGACY.iter().copied().find(|known| *known == version).unwrap_or(LEGACY[0]))
}

fn call<'a>(params: &Params<'a>) -> Result<Asked<'a>, RpcError> {
    let name = params.name.and_then(string).ok_or_else(|| invalid("name must be a string"))?;
    if name != tool::NAME {
        return Err(RpcError::InvalidParams(format!("Unknown tool: {}", quoted(&name))));
    }
    let arguments = params.arguments.filter(|arguments| arguments.get().starts_with('{'));
    arguments.map(Asked::CallTool).ok_or_else(|| invalid("arguments must be an object"))
}

/// The request that a notification cancels; `None` if it is another notification.
pub fn cancelled(message: &Message<'_>) -> Option<Id> {
    let is_one = message.id.is_none() && message.method == "notifications/cancelled";
    let params = message.params().ok().filter(|_| is_one)?;
    params.request_id.and_then(Id::named_by)
}

/// Who answers: the name and version of this program.
#[derive(Debug, Serialize)]
pub struct ServerInfo {
    name: &'static str,
    title: &'static str,
    version: &'static str,
}

const SERVER: ServerInfo =
    ServerInfo { name: "mainbox", title: "mainbox", version: env!("CARGO_PKG_VERSION") };

/// The `_meta` of a result of the modern era.
#[derive(Debug, Serialize)]
pub struct ResultMeta {
    #[serde(rename = "io.modelcontextprotocol/serverInfo")]
    server: ServerInfo,
}

/// What every result of the modern era has and no other: `resultType` and `_meta`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Modern {
    result_type: &'static str,
    #[serde(rename = "_meta")]
    meta: ResultMeta,
}

impl Modern {
    /// The members for a result of this era.
    pub fn of(era: Era) -> Option<Modern> {
        let meta = ResultMeta { server: SERVER };
        (era == Era::Modern).then_some(Modern { result_type: "complete", meta })
    }
}

/// For how long and for whom a result of the modern era may be kept.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Caching {
    ttl_ms: u64,
    cache_scope: &'static str,
}

impl Caching {
    /// `is_private` if callers need a key, so that a shared cache answers none without one.
    fn of(era: Era, is_private: bool) -> Option<Caching> {
        let cache_scope = if is_private { "private" } else { "public" };
        (era == Era::Modern).then_some(Caching { ttl_ms: LIST_TTL_MS, cache_scope })
    }
}

/// The one capability: tools, whose list does not change while the service runs.
#[derive(Debug, Serialize)]
struct Capabilities {
    tools: Empty,
}

/// An empty object.
#[derive(Debug, Serialize)]
pub struct Empty {}

/// The result of `server/discover`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Discovered {
    supported_versions: &'static [&'static str],
    capabilities: Capabilities,
    instructions: &'static str,
    #[serde(flatten)]
    caching: Option<Caching>,
    #[serde(flatten)]
    modern: Option<Modern>,
}

impl Discovered {
    /// The answer; `is_private` if callers need a key.
    pub fn new(is_private: bool) -> Discovered {
        Discovered {
            supported_versions: MODERN,
            capabilities: Capabilities { tools: Empty {} },
            instructions: tool::INSTRUCTIONS,
            caching: Caching::of(Era::Modern, is_private),
            modern: Modern::of(Era::Modern),
        }
    }
}

/// The result of `initialize`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Initialized {
    protocol_version: &'static str,
    capabilities: Capabilities,
    server_info: ServerInfo,
    instructions: &'static str,
}

impl Initialized {
    /// The answer that settles this revision.
    pub fn new(protocol_version: &'static str) -> Initialized {
        Initialized {
            protocol_version,
            capabilities: Capabilities { tools: Empty {} },
            server_info: SERVER,
            instructions: tool::INSTRUCTIONS,
        }
    }
}

/// The result of `tools/list`.
#[derive(Debug, Serialize)]
pub struct Tools {
    tools: [tool::Tool; 1],
    #[serde(flatten)]
    caching: Option<Caching>,
    #[serde(flatten)]
    modern: Option<Modern>,
}

impl Tools {
    /// The list with this tool; `is_private` if callers need a key.
    pub fn new(tool: tool::Tool, era: Era, is_private: bool) -> Tools {
        Tools { tools: [tool], caching: Caching::of(era, is_private), modern: Modern::of(era) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, params: &str, era: Era) -> String {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let message = Message::read(text.as_bytes()).unwrap();
        let params = message.params().unwrap();
        match Asked::of(&message, &params, era) {
            Ok(Asked::CallTool(arguments)) => arguments.get().to_owned(),
            Ok(asked) => format!("{asked:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn each_era_has_its_methods() {
        for (method, modern, legacy) in [
            ("server/discover", "Discover", "Unknown method: server/discover"),
            ("ping", "Unknown method: ping", "Ping"),
            ("tools/list", "ListTools", "ListTools"),
            ("resources/list", "Unknown method: resources/list", "Unknown method: resources/list"),
            ("", "Unknown method: ", "Unknown method: "),
        ] {
            assert_eq!(asked(method, "{}", Era::Modern), modern);
            assert_eq!(asked(method, "{}", Era::Legacy), legacy);
        }
    }

    #[test]
    fn initialize_settles_the_revision_asked_for_or_the_newest() {
        for (version, settled) in [
            ("2025-06-18", "2025-06-18"),
            ("2024-11-05", "2024-11-05"),
            ("2099-01-01", "2025-11-25"),
        ] {
            let params = format!(r#"{{"protocolVersion":"{version}"}}"#);
            assert_eq!(
                asked("initialize", &params, Era::Legacy),
                format!("Initialize({settled:?})")
            );
        }
        assert_eq!(asked("initialize", "{}", Era::Legacy), "protocolVersion must be a string");
    }

    #[test]
    fn a_call_names_the_tool_and_has_an_object_of_arguments() {
        for (params, expected) in [
            (r#"{"name":"run_python","arguments":{"script":"1"}}"#, r#"{"script":"1"}"#),
            (r#"{"name":"other","arguments":{}}"#, "Unknown tool: other"),
            (r#"{"arguments":{}}"#, "name must be a string"),
            (r#"{"name":7,"arguments":{}}"#, "name must be a string"),
            (r#"{"name":"run_python"}"#, "arguments must be an object"),
            (r#"{"name":"run_python","arguments":[1]}"#, "arguments must be an object"),
        ] {
            assert_eq!(asked("tools/call", params, Era::Modern), expected);
        }
    }

    #[test]
    fn a_notification_can_cancel_a_request() {
        let text =
            br#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a"}}"#;
        assert_eq!(cancelled(&Message::read(text).unwrap()).unwrap().text(), "\"a\"");
        let other = br#"{"jsonrpc":"2.0","method":"notifications/x","params":{"requestId":"a"}}"#;
        assert!(cancelled(&Message::read(other).unwrap()).is_none());
    }
}
