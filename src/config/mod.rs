//! The configuration: one struct, read strictly from the environment and the command line.
//!
//! An unknown `MAINBOX_` name or a bad value stops the start with one sentence that names it. [`settings`] is the table
//! of all settings.

pub mod choices;
mod fields;
pub mod settings;

use std::collections::BTreeMap;

use self::choices::{InvokeMode, Platform};
pub use self::fields::Config;
use self::settings::{Reader, SETTINGS, Setting};

/// AWS Lambda sets this to the address of the interface that runtimes fetch requests from.
const LAMBDA: &str = "AWS_LAMBDA_RUNTIME_API";

/// AWS Lambda also sets these, and the crate lambda_runtime panics without them.
const LAMBDA_ALSO_SETS: [&str; 3] =
    ["AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"];

/// Cloud Run sets this to the name of the service:
/// <https://cloud.google.com/run/docs/container-contract#env-vars>. Knative sets it too, but there the number of proxies
/// depends on the installation.
const CLOUD_RUN: &str = "K_SERVICE";
/// Kubernetes sets this in every container, and so tells Knative from Cloud Run.
const KUBERNETES: &str = "KUBERNETES_SERVICE_HOST";

/// The largest response that AWS Lambda accepts if it is not streamed, bytes:
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>.
pub const LAMBDA_RESPONSE_BYTES: usize = 6 << 20;

/// Why the configuration was refused: one sentence that names the setting.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A `MAINBOX_` variable that is not in the table.
    #[error("{0} is not a setting of mainbox; `mainbox --help` lists them all")]
    Unknown(String),
    /// A value that is not UTF-8.
    #[error("{0} is not valid UTF-8")]
    NotText(String),
    /// One of Lambda's variables is set, but another is missing.
    #[error("AWS_LAMBDA_RUNTIME_API is set, but {0} is not")]
    IncompleteLambda(&'static str),
    /// The limits allow a response that AWS Lambda does not accept whole.
    #[error(
        "MAINBOX_MAX_RESULT_BYTES, twice MAINBOX_MAX_STDOUT_BYTES and MAINBOX_MAX_FILES_BYTES in base64 must be at most {LAMBDA_RESPONSE_BYTES} together on AWS Lambda, unless MAINBOX_INVOKE_MODE is RESPONSE_STREAM"
    )]
    OverLambdaLimit,
    /// A secret value that is not accepted. The message never repeats it.
    #[error("{name} {problem}")]
    BadSecret {
        /// The variable or flag.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A value that is not accepted.
    #[error("{name} must be {expected}, not `{value}`")]
    Bad {
        /// The variable or flag.
        name: String,
        /// What is accepted.
        expected: String,
        /// What was given.
        value: String,
    },
}

impl Config {
    /// Reads the configuration from the process environment. `flags` are values from the command line, by the name of
    /// their setting; a flag takes precedence over a variable.
    ///
    /// # Errors
    /// The first name or value that is not accepted.
    pub fn from_env(flags: &BTreeMap<&'static str, String>) -> Result<Config, ConfigError> {
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name != "PORT" && !name.starts_with("MAINBOX_") {
                continue;
            }
            let value = value.into_string().map_err(|_| ConfigError::NotText(name.clone()))?;
            variables.insert(name, value);
        }
        Config::read(&variables, flags, platform()?)
    }

    /// Reads the configuration from `variables`, which must contain no other names than `PORT` and `MAINBOX_*`.
    ///
    /// # Errors
    /// The first name or value that is not accepted.
    pub fn from_variables(
        variables: &BTreeMap<String, String>,
        platform: Platform,
    ) -> Result<Config, ConfigError> {
        Config::read(variables, &BTreeMap::new(), platform)
    }

    fn read(
        variables: &BTreeMap<String, String>,
        flags: &BTreeMap<&'static str, String>,
        platform: Platform,
    ) -> Result<Config, ConfigError> {
        let is_known = |name: &&String| SETTINGS.iter().any(|setting| setting.name == **name);
        if let Some(unknown) = variables.keys().find(|name| !is_known(name)) {
            return Err(ConfigError::Unknown(unknown.clone()));
        }
        let mut config = Config::blank(platform);
        for setting in SETTINGS {
            let name = String::from(setting.name);
            let flag = || format!("--{}", setting.flag());
            let given = flags.get(setting.name).map(|value| (flag(), value.clone()));
            let given = given
                .or_else(|| variables.get(setting.name).map(|value| (name.clone(), value.clone())))
                .or_else(|| setting.default_on(platform).map(|value| (name, value)));
            if let Some((name, value)) = given {
                let is_secret = matches!(setting.reader, Reader::Secret(..));
                if is_secret && name.starts_with("--") && !value.starts_with('@') {
                    let problem = "must be @ and the path of a file, since every process of the host can read the command line";
                    return Err(ConfigError::BadSecret { name, problem: String::from(problem) });
                }
                config.set(setting, name, &value)?;
            }
        }
        let is_limited = platform == Platform::Lambda && config.invoke_mode == InvokeMode::Buffered;
        if is_limited && config.response_bytes() > LAMBDA_RESPONSE_BYTES {
            return Err(ConfigError::OverLambdaLimit);
        }
        Ok(config)
    }

    /// Reads one value. `name` is the variable or flag that it came from.
    fn set(&mut self, setting: &Setting, name: String, value: &str) -> Result<(), ConfigError> {
        let accepted = match &setting.reader {
            Reader::Number(range, set) => number(value, range).map(|number| set(self, number)),
            Reader::Text(_, read) => read(self, value),
            Reader::Secret(_, read) => {
                return read(self, value)
                    .map_err(|problem| ConfigError::BadSecret { name, problem });
            }
        };
        accepted.ok_or_else(|| ConfigError::Bad {
            name,
            expected: setting.accepts(),
            value: value.to_owned(),
        })
    }
}

/// Digits only: the standard library would also read a leading `+`.
fn number(value: &str, range: &std::ops::RangeInclusive<u64>) -> Option<u64> {
    let digits_only = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|number| digits_only && range.contains(number))
}

fn platform() -> Result<Platform, ConfigError> {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if is_set(LAMBDA) {
        return match LAMBDA_ALSO_SETS.into_iter().find(|name| !is_set(name)) {
            Some(missing) => Err(ConfigError::IncompleteLambda(missing)),
            None => Ok(Platform::Lambda),
        };
    }
    let on_cloud_run = is_set(CLOUD_RUN) && !is_set(KUBERNETES);
    Ok(if on_cloud_run { Platform::CloudRun } else { Platform::Elsewhere })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::choices::{Policy, Tier};
    use super::*;

    fn read_on(platform: Platform, rows: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let rows = rows.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Config::from_variables(&rows.collect(), platform)
    }

    fn read(rows: &[(&str, &str)]) -> Result<Config, ConfigError> {
        read_on(Platform::Elsewhere, rows)
    }

    #[test]
    fn every_default_of_the_table_is_read() {
        let config = read(&[]).unwrap();
        assert_eq!((config.port, config.host), (8080, None));
        assert_eq!(config.python, PathBuf::from("python3"));
        assert_eq!(config.timeout, Duration::from_secs(10));
        assert_eq!(config.memory_bytes, 256 << 20);
        assert_eq!(config.max_stdout_bytes, 1 << 20);
        assert_eq!((config.policy, config.floor), (Policy::Standard, Some(Tier::Seccomp)));
        assert_eq!(config.preload, ["numpy", "pandas", "matplotlib.pyplot"]);
        assert!(config.playground && config.concurrency >= 1);
    }

    #[test]
    fn defaults_differ_on_lambda_and_on_cloud_run() {
        let lambda = read_on(Platform::Lambda, &[]).unwrap();
        assert_eq!((lambda.floor, lambda.concurrency), (Some(Tier::Rlimits), 1));
        assert_eq!(lambda.response_bytes(), (5 << 20) + (2 << 20) / 3 + 1);
        let proxies = |platform| read_on(platform, &[]).unwrap().proxies;
        let platforms = [Platform::CloudRun, Platform::Lambda, Platform::Elsewhere];
        assert_eq!(platforms.map(proxies), [1, 0, 0]);
    }

    #[test]
    fn limits_that_lambda_cannot_answer_with_are_refused() {
        let error = read_on(Platform::Lambda, &[("MAINBOX_MAX_RESULT_BYTES", "6000000")]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "MAINBOX_MAX_RESULT_BYTES, twice MAINBOX_MAX_STDOUT_BYTES and MAINBOX_MAX_FILES_BYTES in base64 must be at most 6291456 together on AWS Lambda, unless MAINBOX_INVOKE_MODE is RESPONSE_STREAM"
        );
    }

    #[test]
    fn every_bad_value_is_refused_with_a_sentence_that_names_the_variable() {
        let rows = [
            ("PORT", "65536"),
            ("PORT", "http"),
            ("MAINBOX_HOST", "example.com"),
            ("MAINBOX_HOST", "127.0.0.1:80"),
            ("MAINBOX_RATE", "60"),
            ("MAINBOX_PROXIES", "11"),
            ("MAINBOX_CORS", "example.com"),
            ("MAINBOX_HOSTS", "box.example:80"),
            ("MAINBOX_PAGE", "yes"),
            ("MAINBOX_END_WITH_STDIN", "yes"),
            ("MAINBOX_MCP", "yes"),
            ("MAINBOX_PYTHON", ""),
            ("MAINBOX_PRELOAD", "numpy;pandas"),
            ("MAINBOX_PRELOAD", "os.path.,x"),
            ("MAINBOX_TIMEOUT_SECONDS", "0"),
            ("MAINBOX_TIMEOUT_SECONDS", "301"),
            ("MAINBOX_TIMEOUT_SECONDS", "NaN"),
            ("MAINBOX_TIMEOUT_SECONDS", "ten"),
            ("MAINBOX_MEMORY_MB", "15"),
            ("MAINBOX_MEMORY_MB", "-1"),
            ("MAINBOX_CONCURRENCY", "0"),
            ("MAINBOX_CONCURRENCY", "+2"),
            ("MAINBOX_CPUS_PER_SCRIPT", "0"),
            ("MAINBOX_ARCHIVE", "mainbox.archive"),
            ("MAINBOX_ARCHIVE", "/nowhere/mainbox.archive"),
            ("MAINBOX_QUEUE", "many"),
            ("MAINBOX_START_SECONDS", "0"),
            ("MAINBOX_QUEUE_SECONDS", "0"),
            ("MAINBOX_REST_SECONDS", "0"),
            ("MAINBOX_MAX_SCRIPT_BYTES", "0"),
            ("MAINBOX_MAX_INPUTS", "1001"),
            ("MAINBOX_MAX_STDOUT_BYTES", "1e6"),
            ("MAINBOX_MAX_RESULT_BYTES", ""),
            ("MAINBOX_MAX_FILES_BYTES", "67108865"),
            ("MAINBOX_SCRATCH_MB", "9999"),
            ("MAINBOX_METRICS", "statsd"),
            ("MAINBOX_INVOKE_MODE", "response_stream"),
            ("MAINBOX_POLICY", "loose"),
            ("MAINBOX_FLOOR", "chroot"),
            ("MAINBOX_LOG", "trace"),
        ];
        let tested = |setting: &Setting| rows.iter().any(|(name, _)| *name == setting.name);
        for setting in SETTINGS.iter().filter(|row| !matches!(row.reader, Reader::Secret(..))) {
            assert!(tested(setting), "no bad value for {}", setting.name);
        }
        for (name, value) in rows {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name} must be ")), "{name}={value}: {error}");
            assert!(error.ends_with(&format!(", not `{value}`")), "{error}");
        }
    }

    #[test]
    fn a_bad_secret_is_refused_without_repeating_it() {
        let error = read(&[("MAINBOX_API_KEYS", "hunter2")]).unwrap_err().to_string();
        assert!(error.starts_with("MAINBOX_API_KEYS must contain keys of at least 16"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_secret_is_not_accepted_on_the_command_line_but_in_a_file() {
        let with = |value: &str| {
            let flags = BTreeMap::from([("MAINBOX_API_KEYS", String::from(value))]);
            Config::read(&BTreeMap::new(), &flags, Platform::Elsewhere)
                .map(|config| config.api_keys)
        };
        assert_eq!(
            with("first-0123456789").unwrap_err().to_string(),
            "--api-keys must be @ and the path of a file, since every process of the host can read the command line"
        );
        assert_eq!(
            with("@/nowhere").unwrap_err().to_string(),
            "--api-keys names a file that cannot be read"
        );
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        assert_eq!(
            read(&[("MAINBOX_TIMEOUT", "3")]).unwrap_err().to_string(),
            "MAINBOX_TIMEOUT is not a setting of mainbox; `mainbox --help` lists them all"
        );
    }

    #[test]
    fn a_flag_takes_precedence_and_its_error_names_the_flag() {
        let variables = BTreeMap::from([(String::from("MAINBOX_QUEUE"), String::from("5"))]);
        let with = |value: &str| {
            let flags = BTreeMap::from([("MAINBOX_QUEUE", String::from(value))]);
            Config::read(&variables, &flags, Platform::Elsewhere)
        };
        assert_eq!(with("7").unwrap().queue, 7);
        assert_eq!(
            with("x").unwrap_err().to_string(),
            "--queue must be a whole number from 0 to 10000, not `x`"
        );
    }
}
