//! The tool `run_python`, as it is described to a language model.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::api::catalogue::Failure;
use crate::api::limits::RequestLimits;
use crate::api::request::{Entry, ExecuteRequest};
use crate::config::Config;

/// The name of the tool.
pub const NAME: &str = "run_python";

/// What a model is told once about the service.
pub const INSTRUCTIONS: &str = "run_python runs Python code in a sandbox and returns its result, what it printed, its pictures and its files. Use it to compute, to analyze data and to draw plots. Each call starts from nothing: pass all code and data with it. If a call fails, its text says what went wrong and on which line; correct the script and call again.";

/// A tool as `tools/list` returns it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tool {
    name: &'static str,
    title: &'static str,
    description: String,
    input_schema: Value,
    annotations: Annotations,
}

/// Hints for clients that ask their user before they call a tool. A script changes nothing outside of its sandbox, and
/// reaches nothing there.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Annotations {
    read_only_hint: bool,
    destructive_hint: bool,
    open_world_hint: bool,
}

impl Tool {
    /// The tool under these settings. `installed` are the packages of the interpreter and their versions.
    pub fn new(config: &Config, installed: &BTreeMap<String, String>) -> Tool {
        Tool {
            name: NAME,
            title: "Run Python",
            description: description(config, installed),
            input_schema: input_schema(),
            annotations: Annotations {
                read_only_hint: true,
                destructive_hint: false,
                open_world_hint: false,
            },
        }
    }
}

fn description(config: &Config, installed: &BTreeMap<String, String>) -> String {
    let packages: Vec<_> =
        installed.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let packages = match packages.as_slice() {
        [] => String::from("no other packages"),
        packages => packages.join(", "),
    };
    format!(
        "Runs a Python script in a fresh sandbox. Define `def main():`, or `def main(input):` to receive `input`, and return the answer as a value with a JSON form; values of numpy and pandas are converted. A script without main() runs as a program, and the answer is what it prints.\n\
         Modules: the standard library, {packages}. Nothing else can be installed.\n\
         What cannot work: the network, other programs and processes, files and variables of an earlier call.\n\
         Pictures: plt.show() returns each figure as an image. Files that the script writes to outputs/ come back too.\n\
         Limits: {} seconds, {} MB of memory, {} bytes printed, a result of {} bytes, {} bytes of files.",
        config.timeout.as_secs_f64(),
        config.memory_bytes >> 20,
        config.max_stdout_bytes,
        config.max_result_bytes,
        config.max_files_bytes,
    )
}

fn input_schema() -> Value {
    // One branch for each type, since some model providers take neither a list of types nor a value without a type.
    let any_type = ["object", "array", "string", "number", "boolean", "null"];
    let any_type = any_type.map(|name| json!({"type": name}));
    json!({
        "type": "object",
        "properties": {
            "script": {"type": "string", "description": "Python source code"},
            "input": {
                "description": "Any JSON value; the argument of main()",
                "anyOf": any_type,
            },
            "files": {
                "type": "object",
                "description": "Files for the working directory: name to content",
                "additionalProperties": {
                    "anyOf": [
                        {"type": "string"},
                        {
                            "type": "object",
                            "properties": {"base64": {"type": "string"}},
                            "required": ["base64"],
                            "additionalProperties": false,
                        },
                    ],
                },
            },
        },
        "required": ["script"],
    })
}

/// Reads the arguments of a call. They are those of the body of `/execute`, of which the schema names the ones that a
/// model needs.
///
/// # Errors
/// As [`ExecuteRequest::from_json`].
pub fn request(arguments: &str, limits: RequestLimits) -> Result<ExecuteRequest, Failure> {
    let mut request = ExecuteRequest::from_json(arguments.as_bytes(), limits)?;
    if request.inputs.is_some() {
        return Err(Failure::invalid_request("A call takes one `input`, not `inputs`"));
    }
    request.entry.get_or_insert(Entry::Auto);
    if let Some(code) = unfenced(&request.script) {
        request.script = String::from(code);
    }
    Ok(request)
}

/// The code in a script that is one Markdown code block, as models write it; `None` if it is anything else. It begins with
/// the end of the first line, so that its lines have the numbers that they have in the block.
fn unfenced(script: &str) -> Option<&str> {
    let block = script.trim().strip_prefix("```")?.strip_suffix("```")?;
    let (language, code) = block.split_at(block.find('\n')?);
    let is_python = ["", "python", "python3", "py"].contains(&language.trim());
    let is_code = !code.trim().is_empty() && !code.lines().any(|line| line.starts_with("```"));
    (is_python && is_code).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits { max_script_bytes: 100, max_inputs: 9 };

    #[test]
    fn a_script_in_one_code_block_is_unwrapped() {
        for fenced in [
            "```python\nprint(1)\n```",
            "```\nprint(1)\n```",
            "\n ```py \r\nprint(1)\n``` \n",
            "```python3\nprint(1)\n```",
        ] {
            assert_eq!(unfenced(fenced), Some("\nprint(1)\n"), "{fenced}");
        }
        for other in [
            "print(1)",
            "```",
            "``````",
            "```print(1)```",
            "```js\n1\n```",
            "```python\n```",
            "```python\nprint(1)",
            "```python\nprint(1)\n```\nand\n```python\nprint(2)\n```",
            "text = '''\n```\n'''",
        ] {
            assert_eq!(unfenced(other), None, "{other}");
        }
    }

    #[test]
    fn a_call_finds_out_how_to_run_its_script_unless_it_tells() {
        let entry = |arguments| request(arguments, LIMITS).unwrap().entry;
        assert_eq!(entry(r#"{"script":"1"}"#), Some(Entry::Auto));
        assert_eq!(entry(r#"{"script":"1","entry":"main"}"#), Some(Entry::Main));
        let error = request(r#"{"script":1}"#, LIMITS).unwrap_err().error;
        assert_eq!(error, "script must be a string");
    }
}
