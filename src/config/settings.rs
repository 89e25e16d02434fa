//! The table of settings. Each row contains everything about one setting: its name, default, accepted values, meaning,
//! and how its value is read. The command line, the manual and docs/configuration.md show the same rows.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::choices::{InvokeMode, Metrics, Origins, Platform, Policy, Tier};
use super::fields::Config;
use crate::api::limits::timeout_from_seconds;
use crate::callers::api_keys::ApiKeys;
use crate::callers::rate_limit::Rate;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A row of the table.
pub struct Setting {
    /// The name of the environment variable.
    pub name: &'static str,
    /// The placeholder of the value in `--help`.
    pub value: &'static str,
    /// The value when the setting is absent.
    pub default: DefaultValue,
    /// What the setting does, with its unit.
    pub meaning: &'static str,
    /// How a value is read.
    pub reader: Reader,
}

/// The value of a setting that is absent.
pub enum DefaultValue {
    /// The same on every platform.
    Is(&'static str),
    /// Another value on one platform: (elsewhere, the platform, the value there).
    Differs(&'static str, Platform, &'static str),
    /// Computed: (description, function).
    Computed(&'static str, fn(Platform) -> String),
    /// Nothing is read; the text says what applies then.
    Absent(&'static str),
}

/// How a value is read into the configuration.
pub enum Reader {
    /// A whole number within a range.
    Number(RangeInclusive<u64>, fn(&mut Config, u64)),
    /// Any other text: (what is accepted, reader). The reader returns `None` for a value that it does not accept.
    Text(&'static str, fn(&mut Config, &str) -> Option<()>),
    /// A value that is never repeated in a message: (what is accepted, reader). The reader returns what is wrong.
    Secret(&'static str, fn(&mut Config, &str) -> Result<(), String>),
}

impl Setting {
    /// The name of the command-line flag, without the leading dashes: `MAINBOX_MEMORY_MB` becomes `memory-mb`.
    pub fn flag(&self) -> String {
        let name = self.name.strip_prefix("MAINBOX_").unwrap_or(self.name);
        name.to_ascii_lowercase().replace('_', "-")
    }

    /// The default, as text for people.
    pub fn default_text(&self) -> String {
        match &self.default {
            DefaultValue::Is(value) => format!("`{value}`"),
            DefaultValue::Differs(elsewhere, Platform::Lambda, there) => {
                format!("`{elsewhere}`; `{there}` on AWS Lambda")
            }
            DefaultValue::Differs(elsewhere, _, there) => {
                format!("`{elsewhere}`; `{there}` on Cloud Run")
            }
            DefaultValue::Computed(text, _) | DefaultValue::Absent(text) => String::from(*text),
        }
    }

    /// The default as a value to read; `None` when there is nothing to read.
    pub(super) fn default_on(&self, platform: Platform) -> Option<String> {
        match &self.default {
            DefaultValue::Is(value) => Some(String::from(*value)),
            DefaultValue::Differs(elsewhere, special, there) => {
                Some(String::from(if platform == *special { *there } else { *elsewhere }))
            }
            DefaultValue::Computed(_, compute) => Some(compute(platform)),
            DefaultValue::Absent(_) => None,
        }
    }

    /// The accepted values, for people.
    pub fn accepts(&self) -> String {
        match &self.reader {
            Reader::Number(range, _) => {
                format!("a whole number from {} to {}", range.start(), range.end())
            }
            Reader::Text(accepted, _) | Reader::Secret(accepted, _) => String::from(*accepted),
        }
    }
}

/// Every setting, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "PORT",
        value: "PORT",
        default: DefaultValue::Is("8080"),
        meaning: "TCP port to listen on; 0 picks a free port",
        reader: Reader::Number(0..=65535, |config, value| config.port = value as u16),
    },
    Setting {
        name: "MAINBOX_HOST",
        value: "ADDRESS",
        default: DefaultValue::Absent("all addresses, IPv6 and IPv4"),
        meaning: "address to listen on",
        reader: Reader::Text("an IP address or `localhost`", |config, value| {
            config.host = Some(match value {
                "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                address => address.parse().ok()?,
            });
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_API_KEYS",
        value: "KEYS",
        default: DefaultValue::Absent("none"),
        meaning: "API keys; requests without a valid key get 401 `unauthorized`",
        reader: Reader::Secret(
            "keys of at least 16 visible characters, separated by commas, or `@` and the path of a file with one key per line",
            |config, value| {
                config.api_keys = Some(ApiKeys::read(value).map_err(|error| error.to_string())?);
                Ok(())
            },
        ),
    },
    Setting {
        name: "MAINBOX_RATE",
        value: "RATE",
        default: DefaultValue::Absent("none"),
        meaning: "scripts that each API key may run per period, or each client address if there are no keys; further requests get 429 `rate_limited`; a request that is refused as `busy` does not count; each process counts for itself",
        reader: Reader::Text(
            "a number and a period, such as `5/s`, `60/min` or `1000/h`",
            |config, value| {
                config.rate = Some(Rate::read(value)?);
                Some(())
            },
        ),
    },
    Setting {
        name: "MAINBOX_PROXIES",
        value: "COUNT",
        default: DefaultValue::Differs("0", Platform::CloudRun, "1"),
        meaning: "number of trusted proxies in front of the service; the client address is read from the X-Forwarded-For entries that they append",
        reader: Reader::Number(0..=10, |config, value| config.proxies = value as usize),
    },
    Setting {
        name: "MAINBOX_CORS",
        value: "ORIGINS",
        default: DefaultValue::Absent("none"),
        meaning: "origins whose pages may call the service from a browser; without API keys, requests from other pages get 403 `forbidden_origin`",
        reader: Reader::Text(
            "`*`, or origins such as `https://example.com`, without a path, separated by commas",
            |config, value| {
                config.cors = Some(Origins::read(value)?);
                Some(())
            },
        ),
    },
    Setting {
        name: "MAINBOX_HOSTS",
        value: "NAMES",
        default: DefaultValue::Absent("none"),
        meaning: "host names, besides those of loopback, under which a service that listens on loopback only answers; other names in `Host` get 403 `forbidden_origin`",
        reader: Reader::Text("host names separated by commas, without ports", |config, value| {
            config.hosts =
                value.split(',').map(|name| host_name(name.trim())).collect::<Option<_>>()?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_PAGE",
        value: "ON_OR_OFF",
        default: DefaultValue::Is("on"),
        meaning: "playground page at `/` for browsers; with `off` they get the JSON index",
        reader: Reader::Text("`on` or `off`", |config, value| {
            config.playground = on_or_off(value)?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_MCP",
        value: "ON_OR_OFF",
        default: DefaultValue::Is("on"),
        meaning: "endpoint `/mcp` for agents, which speaks the Model Context Protocol",
        reader: Reader::Text("`on` or `off`", |config, value| {
            config.mcp = on_or_off(value)?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_PYTHON",
        value: "PROGRAM",
        default: DefaultValue::Is("python3"),
        meaning: "the interpreter, CPython 3.11 or newer, but not 3.14.0 to 3.14.4",
        reader: Reader::Text(
            "a path, or a name to look up beside mainbox in a virtual environment, then on PATH",
            |config, value| {
                config.python = PathBuf::from(value);
                (!value.is_empty()).then_some(())
            },
        ),
    },
    Setting {
        name: "MAINBOX_PRELOAD",
        value: "MODULES",
        default: DefaultValue::Is("numpy,pandas,matplotlib.pyplot"),
        meaning: "modules to import before the first request; a module that is not installed is skipped with a warning",
        reader: Reader::Text("module names separated by commas", |config, value| {
            config.preload = modules(value)?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_ARCHIVE",
        value: "FILE",
        default: DefaultValue::Absent("none"),
        meaning: "bytecode archive from which the preloaded modules are imported; faster where opening files is slow",
        reader: Reader::Text(
            "the absolute path of a file that `mainbox archive` wrote",
            |config, value| {
                let path = PathBuf::from(value);
                let is_usable = path.is_absolute() && path.is_file();
                config.archive = Some(path);
                is_usable.then_some(())
            },
        ),
    },
    Setting {
        name: "MAINBOX_START_SECONDS",
        value: "SECONDS",
        default: DefaultValue::Is("60"),
        meaning: "seconds that the interpreter may take to start and import the preloaded modules; if it takes longer, mainbox exits with an error",
        reader: Reader::Number(1..=3600, |config, value| {
            config.start_timeout = Duration::from_secs(value);
        }),
    },
    Setting {
        name: "MAINBOX_TIMEOUT_SECONDS",
        value: "SECONDS",
        default: DefaultValue::Is("10"),
        meaning: "wall time limit of a script, seconds",
        reader: Reader::Text("a number of seconds above 0 and at most 300", |config, value| {
            config.timeout = timeout_from_seconds(value.parse().ok()?)?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_MEMORY_MB",
        value: "MB",
        default: DefaultValue::Is("256"),
        meaning: "memory limit of a script on top of the preloaded interpreter, MB",
        reader: Reader::Number(16..=65536, |config, value| config.memory_bytes = value * MIB),
    },
    Setting {
        name: "MAINBOX_CONCURRENCY",
        value: "COUNT",
        default: DefaultValue::Computed(
            "the CPUs available to the process; `1` on AWS Lambda",
            |platform| match platform {
                // A Lambda environment gets one request at a time.
                Platform::Lambda => String::from("1"),
                Platform::CloudRun | Platform::Elsewhere => available_cpus().to_string(),
            },
        ),
        meaning: "number of scripts that run at once",
        reader: Reader::Number(1..=MAX_CONCURRENCY, |config, value| {
            config.concurrency = value as usize;
        }),
    },
    Setting {
        name: "MAINBOX_CPUS_PER_SCRIPT",
        value: "COUNT",
        default: DefaultValue::Is("1"),
        meaning: "CPUs that a script with several threads may use on average; if more scripts run than there are CPUs, each gets an equal part",
        reader: Reader::Number(1..=MAX_CPUS, |config, value| {
            config.cpus_per_script = value as usize;
        }),
    },
    Setting {
        name: "MAINBOX_QUEUE",
        value: "COUNT",
        default: DefaultValue::Is("64"),
        meaning: "number of requests that may wait for a worker; when the queue is full, further requests get 503 `busy`",
        reader: Reader::Number(0..=10_000, |config, value| config.queue = value as usize),
    },
    Setting {
        name: "MAINBOX_QUEUE_SECONDS",
        value: "SECONDS",
        default: DefaultValue::Is("10"),
        meaning: "seconds that a request may wait in the queue; a request that waits longer, or that recent run times say would wait longer, gets 503 `busy`",
        reader: Reader::Number(1..=3600, |config, value| {
            config.queue_timeout = Duration::from_secs(value);
        }),
    },
    Setting {
        name: "MAINBOX_REST_SECONDS",
        value: "SECONDS",
        default: DefaultValue::Is("60"),
        meaning: "seconds without a request after which all spare workers but one of each kind are killed, to save memory",
        reader: Reader::Number(1..=86_400, |config, value| {
            config.idle_after = Duration::from_secs(value);
        }),
    },
    Setting {
        name: "MAINBOX_MAX_SCRIPT_BYTES",
        value: "BYTES",
        default: DefaultValue::Is("102400"),
        meaning: "largest script, bytes",
        reader: Reader::Number(1..=4 * MIB, |config, value| {
            config.max_script_bytes = value as usize;
        }),
    },
    Setting {
        name: "MAINBOX_MAX_INPUTS",
        value: "COUNT",
        default: DefaultValue::Is("100"),
        meaning: "largest number of inputs in one request",
        reader: Reader::Number(1..=1000, |config, value| config.max_inputs = value as usize),
    },
    Setting {
        name: "MAINBOX_MAX_STDOUT_BYTES",
        value: "BYTES",
        default: DefaultValue::Differs("1048576", Platform::Lambda, "524288"),
        meaning: "largest stdout and largest stderr that are returned, bytes each; the rest is discarded",
        reader: Reader::Number(0..=16 * MIB, |config, value| {
            config.max_stdout_bytes = value as usize;
        }),
    },
    Setting {
        name: "MAINBOX_MAX_RESULT_BYTES",
        value: "BYTES",
        default: DefaultValue::Is("4194304"),
        meaning: "largest result as JSON, bytes",
        reader: Reader::Number(2..=64 * MIB, |config, value| {
            config.max_result_bytes = value as usize;
        }),
    },
    Setting {
        name: "MAINBOX_MAX_FILES_BYTES",
        value: "BYTES",
        default: DefaultValue::Differs("4194304", Platform::Lambda, "524288"),
        meaning: "largest total size of the files in `outputs/`, bytes",
        reader: Reader::Number(0..=64 * MIB, |config, value| {
            config.max_files_bytes = value as usize;
        }),
    },
    Setting {
        name: "MAINBOX_SCRATCH_MB",
        value: "MB",
        default: DefaultValue::Is("64"),
        meaning: "size of the scratch directory, and of the largest file in it, MB",
        reader: Reader::Number(0..=4096, |config, value| config.scratch_bytes = value * MIB),
    },
    Setting {
        name: "MAINBOX_METRICS",
        value: "FORMAT",
        default: DefaultValue::Is("off"),
        meaning: "on AWS Lambda, `emf` prints one line of CloudWatch metrics to stdout for each execution",
        reader: Reader::Text("`off` or `emf`", |config, value| {
            config.metrics = choose(value, [("off", Metrics::Off), ("emf", Metrics::Emf)])?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_INVOKE_MODE",
        value: "MODE",
        default: DefaultValue::Is("BUFFERED"),
        meaning: "on AWS Lambda, how the function URL receives responses: whole, or piece by piece while scripts run; it must be the `InvokeMode` of the URL",
        reader: Reader::Text("`BUFFERED` or `RESPONSE_STREAM`", |config, value| {
            config.invoke_mode = choose(
                value,
                [
                    ("BUFFERED", InvokeMode::Buffered),
                    ("RESPONSE_STREAM", InvokeMode::ResponseStream),
                ],
            )?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_END_WITH_STDIN",
        value: "ON_OR_OFF",
        default: DefaultValue::Is("off"),
        meaning: "whether the service ends when its standard input does, for a program that starts it and keeps the other end of a pipe",
        reader: Reader::Text("`on` or `off`", |config, value| {
            config.end_with_stdin = on_or_off(value)?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_POLICY",
        value: "POLICY",
        default: DefaultValue::Is("standard"),
        meaning: "early check that refuses scripts before they run; it is not a security boundary",
        reader: Reader::Text("`off`, `standard` or `strict`", |config, value| {
            config.policy = choose(value, Policy::ALL.map(|policy| (policy.name(), policy)))?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_FLOOR",
        value: "TIER",
        default: DefaultValue::Differs("seccomp", Platform::Lambda, "rlimits"),
        meaning: "weakest isolation tier with which mainbox starts; `none` allows running without a sandbox and is for development only",
        reader: Reader::Text("`namespaces`, `seccomp`, `rlimits` or `none`", |config, value| {
            let tiers = Tier::ALL.into_iter().map(|tier| (tier.name(), Some(tier)));
            config.floor = choose(value, tiers.chain([("none", None)]))?;
            Some(())
        }),
    },
    Setting {
        name: "MAINBOX_LOG",
        value: "LEVEL",
        default: DefaultValue::Absent(
            "`info`; `warn` for commands; the level of the function on AWS Lambda",
        ),
        meaning: "lowest level that is logged; `debug` also shows what a worker wrote to stderr before it was ready",
        reader: Reader::Text("`error`, `warn`, `info` or `debug`", |config, value| {
            use tracing::Level;
            let levels = [
                ("error", Level::ERROR),
                ("warn", Level::WARN),
                ("info", Level::INFO),
                ("debug", Level::DEBUG),
            ];
            config.log = Some(choose(value, levels)?);
            Some(())
        }),
    },
];

/// The largest number of scripts that can run at once.
const MAX_CONCURRENCY: u64 = 256;
const MAX_CPUS: u64 = 1024;

fn available_cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_CONCURRENCY as usize) as u64
}

fn choose<T>(value: &str, choices: impl IntoIterator<Item = (&'static str, T)>) -> Option<T> {
    choices.into_iter().find(|(name, _)| *name == value).map(|(_, choice)| choice)
}

fn on_or_off(value: &str) -> Option<bool> {
    choose(value, [("on", true), ("off", false)])
}

/// Module names separated by commas; empty items are skipped.
fn modules(value: &str) -> Option<Vec<String>> {
    let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| is_module(name).then(|| name.to_owned())).collect()
}

/// A host name, in lower case.
fn host_name(name: &str) -> Option<String> {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_letter)).then(|| name.to_ascii_lowercase())
}

fn is_module(name: &str) -> bool {
    name.split('.').all(|part| {
        !part.starts_with(|first: char| first.is_ascii_digit())
            && !part.is_empty()
            && part.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_name_a_flag_and_a_meaning_of_its_own() {
        let mut flags: Vec<String> = SETTINGS.iter().map(Setting::flag).collect();
        flags.sort();
        flags.dedup();
        assert_eq!(flags.len(), SETTINGS.len());
        for setting in SETTINGS {
            assert!(setting.name == "PORT" || setting.name.starts_with("MAINBOX_"));
            assert!(!setting.meaning.ends_with('.') && !setting.default_text().is_empty());
        }
        assert_eq!(SETTINGS[0].flag(), "port");
        assert_eq!(SETTINGS[2].flag(), "api-keys");
    }
}
