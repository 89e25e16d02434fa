//! Configuration: one struct, read strictly from the environment.
//!
//! An unknown `MAINBOX_` name or a bad value stops the start with one sentence that names it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tower_http::cors::CorsLayer;

use crate::keys::{Keys, KeysError};
use crate::rate::Rate;
use crate::sandbox::tier::Tier;
use crate::values::Values;
use crate::variables::VARIABLES;

/// The name by which AWS Lambda tells a runtime where its interface is.
const LAMBDA: &str = "AWS_LAMBDA_RUNTIME_API";

/// What it sets besides, and lambda_runtime relies on.
const LAMBDA_SETS: [&str; 3] =
    ["AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"];

/// The name by which Cloud Run tells a container which service it is:
/// <https://cloud.google.com/run/docs/container-contract#env-vars>. So does Knative, where it is for whoever set it up to
/// know how many proxies there are.
const CLOUD_RUN: &str = "K_SERVICE";
/// What is set in every container of a Kubernetes, and so of a Knative that is not Google's.
const KUBERNETES: &str = "KUBERNETES_SERVICE_HOST";

/// Bytes of an answer that AWS Lambda takes: <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>.
pub const LAMBDA_ANSWER_BYTES: usize = 6 * MIB as usize;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What a script is refused before it runs. A courtesy with a clear early message, never the boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Only syntax and `main` are checked.
    Off,
    /// Refuses what can never work in the box.
    Standard,
    /// Also refuses introspection, and a `main` that returns nothing.
    Strict,
}

impl Policy {
    /// The policy's name in the configuration and in `/about`.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Off => "off",
            Policy::Standard => "standard",
            Policy::Strict => "strict",
        }
    }
}

/// Where metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// Nowhere.
    Off,
    /// To stdout, in CloudWatch's embedded metric format.
    Emf,
}

/// Who starts us, as far as defaults differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// AWS Lambda: it calls us, instead of HTTP clients.
    Lambda,
    /// Cloud Run: a proxy in front tells who calls.
    CloudRun,
    /// A laptop, a container, anything else.
    Elsewhere,
}

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who starts us.
    pub platform: Platform,
    /// TCP port of the HTTP front.
    pub port: u16,
    /// The interpreter as configured or found; not yet resolved.
    pub python: PathBuf,
    /// Who may have scripts run; everybody when there are none.
    pub keys: Option<Keys>,
    /// How often each caller may have a script run; as often as it likes when there is none.
    pub rate: Option<Rate>,
    /// Proxies in front that tell who calls.
    pub proxies: usize,
    /// Which pages may call from a browser, if any.
    pub cors: Option<CorsLayer>,
    /// Whether browsers get a page to try it.
    pub page: bool,
    /// Modules that the zygote imports.
    pub preload: Vec<String>,
    /// Where their bytecode is, if it is in one file.
    pub archive: Option<PathBuf>,
    /// Wall time of a script.
    pub timeout: Duration,
    /// Bytes on top of the preloaded interpreter.
    pub memory_bytes: u64,
    /// Scripts running at once.
    pub concurrency: usize,
    /// Requests waiting for their turn.
    pub queue: usize,
    /// How long without a request until one spare of each kind is enough.
    pub rest: Duration,
    /// Bytes of a script.
    pub max_script_bytes: usize,
    /// Bytes kept of each of stdout and stderr.
    pub max_stdout_bytes: usize,
    /// Bytes of the result as JSON.
    pub max_result_bytes: usize,
    /// Bytes of all files that come back.
    pub max_files_bytes: usize,
    /// Bytes of a file in the scratch directory.
    pub scratch_bytes: u64,
    /// Where metrics are written.
    pub metrics: Metrics,
    /// What is refused before a script runs.
    pub policy: Policy,
    /// Weakest tier that may serve; `None` serves in any.
    pub floor: Option<Tier>,
}

/// Why the configuration was refused: one sentence each, naming the variable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A `MAINBOX_` name that nothing reads.
    #[error("{0} is not a setting of mainbox; the README lists them all")]
    Unknown(String),
    /// A value that is not UTF-8.
    #[error("{0} is not valid UTF-8")]
    NotText(String),
    /// Something says that this is AWS Lambda, but it is not.
    #[error("AWS_LAMBDA_RUNTIME_API is set, but {0} is not")]
    NoLambda(&'static str),
    /// More than an answer of AWS Lambda's can hold.
    #[error(
        "MAINBOX_MAX_RESULT_BYTES, twice MAINBOX_MAX_STDOUT_BYTES and MAINBOX_MAX_FILES_BYTES in base64 must be at most {LAMBDA_ANSWER_BYTES} together on AWS Lambda"
    )]
    OverLambda,
    /// Keys that are none.
    #[error("MAINBOX_API_KEYS {0}")]
    Keys(#[from] KeysError),
    /// A value outside what the variable takes.
    #[error("{name} must be {expected}, not `{value}`")]
    Bad {
        /// The variable.
        name: &'static str,
        /// What it takes.
        expected: String,
        /// What it was given.
        value: String,
    },
}

impl Config {
    /// Reads the configuration from the process environment.
    ///
    /// # Errors
    /// The first name or value that is not understood.
    pub fn from_env() -> Result<Config, ConfigError> {
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name != "PORT" && !name.starts_with("MAINBOX_") {
                continue;
            }
            let value = value.into_string().map_err(|_| ConfigError::NotText(name.clone()))?;
            variables.insert(name, value);
        }
        let is_set = |name: &str| std::env::var_os(name).is_some();
        let platform = if is_set(LAMBDA) {
            Platform::Lambda
        } else if is_set(CLOUD_RUN) && !is_set(KUBERNETES) {
            Platform::CloudRun
        } else {
            Platform::Elsewhere
        };
        let missing = LAMBDA_SETS.into_iter().find(|name| !is_set(name));
        if let (Platform::Lambda, Some(missing)) = (platform, missing) {
            return Err(ConfigError::NoLambda(missing));
        }
        Config::from_variables(variables, platform)
    }

    /// Reads the configuration from `variables`; names other than `PORT` and `MAINBOX_*` must not be among them. Some
    /// defaults are those of the `platform`.
    ///
    /// # Errors
    /// The first name or value that is not understood.
    pub fn from_variables(
        variables: BTreeMap<String, String>,
        platform: Platform,
    ) -> Result<Config, ConfigError> {
        if let Some(unknown) =
            variables.keys().find(|name| !VARIABLES.iter().any(|row| row.name == *name))
        {
            return Err(ConfigError::Unknown(unknown.clone()));
        }
        let on_lambda = platform == Platform::Lambda;
        let values = Values { variables, on_lambda };
        // An environment of Lambda's gets one request at a time.
        let cpus = if on_lambda { 1 } else { available_cpus() };
        let (stdout, files) = if on_lambda { (MIB / 2, MIB / 2) } else { (MIB, 4 * MIB) };
        let proxies = u64::from(platform == Platform::CloudRun);
        let config = Config {
            platform,
            port: values.number("PORT", 8080, 0, 65535)? as u16,
            python: values.python()?,
            keys: values.get("MAINBOX_API_KEYS").map(Keys::read).transpose()?,
            rate: values.rate()?,
            proxies: values.number("MAINBOX_PROXIES", proxies, 0, 10)? as usize,
            cors: values.cors()?,
            page: values.page()?,
            preload: values.preload()?,
            archive: values.archive()?,
            timeout: values.timeout()?,
            memory_bytes: values.number("MAINBOX_MEMORY_MB", 256, 16, 65536)? * MIB,
            concurrency: values.number("MAINBOX_CONCURRENCY", cpus, 1, 256)? as usize,
            queue: values.number("MAINBOX_QUEUE", 64, 0, 10_000)? as usize,
            rest: Duration::from_secs(values.number("MAINBOX_REST_SECONDS", 60, 1, 86_400)?),
            max_script_bytes: values.number("MAINBOX_MAX_SCRIPT_BYTES", 100 * KIB, 1, 4 * MIB)?
                as usize,
            max_stdout_bytes: values.number("MAINBOX_MAX_STDOUT_BYTES", stdout, 0, 16 * MIB)?
                as usize,
            max_result_bytes: values.number("MAINBOX_MAX_RESULT_BYTES", 4 * MIB, 2, 64 * MIB)?
                as usize,
            max_files_bytes: values.number("MAINBOX_MAX_FILES_BYTES", files, 0, 64 * MIB)? as usize,
            scratch_bytes: values.number("MAINBOX_SCRATCH_MB", 64, 0, 4096)? * MIB,
            metrics: values.metrics()?,
            policy: values.policy()?,
            floor: values.floor()?,
        };
        if on_lambda && config.answer_bytes() > LAMBDA_ANSWER_BYTES {
            return Err(ConfigError::OverLambda);
        }
        Ok(config)
    }

    /// Bytes of the largest answer, but for what escaping adds.
    fn answer_bytes(&self) -> usize {
        self.max_result_bytes + 2 * self.max_stdout_bytes + (self.max_files_bytes * 4).div_ceil(3)
    }
}

fn available_cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, usize::from).min(256) as u64
}

/// A wall time limit from a number of seconds, if it is one: above 0 and at most 300.
pub fn timeout_from_seconds(seconds: f64) -> Option<Duration> {
    (seconds > 0.0 && seconds <= 300.0)
        .then(|| Duration::from_secs_f64(seconds).max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rows: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_variables(
            rows.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            Platform::Elsewhere,
        )
    }

    #[test]
    fn defaults_are_those_of_the_table() {
        let config = read(&[]).unwrap();
        assert_eq!(config.port, 8080);
        assert_eq!(config.timeout, Duration::from_secs(10));
        assert_eq!(config.memory_bytes, 256 * 1024 * 1024);
        assert_eq!(config.queue, 64);
        assert_eq!(config.rest, Duration::from_secs(60));
        assert_eq!(config.max_script_bytes, 102_400);
        assert_eq!(config.max_stdout_bytes, 1_048_576);
        assert_eq!(config.max_result_bytes, 4_194_304);
        assert_eq!(config.max_files_bytes, 4_194_304);
        assert_eq!(config.policy, Policy::Standard);
        assert_eq!(config.floor, Some(Tier::Seccomp));
        assert_eq!(config.preload, ["numpy", "pandas"]);
    }

    #[test]
    fn on_lambda_the_floor_is_what_lambda_gives() {
        let config = Config::from_variables(BTreeMap::new(), Platform::Lambda).unwrap();
        assert_eq!(config.floor, Some(Tier::Rlimits));
    }

    #[test]
    fn behind_cloud_run_there_is_a_proxy() {
        let proxies = |platform| Config::from_variables(BTreeMap::new(), platform).unwrap().proxies;
        assert_eq!(
            [Platform::CloudRun, Platform::Lambda, Platform::Elsewhere].map(proxies),
            [1, 0, 0]
        );
    }

    #[test]
    fn on_lambda_one_script_runs_at_once_and_the_caps_fit_into_an_answer() {
        let read = |rows: &[(&str, &str)]| {
            let rows = rows.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            Config::from_variables(rows.collect(), Platform::Lambda)
        };
        let config = read(&[]).unwrap();
        assert_eq!(config.concurrency, 1);
        assert_eq!(config.answer_bytes(), (5 << 20) + (2 << 20) / 3 + 1);
        assert_eq!(
            read(&[("MAINBOX_MAX_RESULT_BYTES", "6000000")]).unwrap_err().to_string(),
            "MAINBOX_MAX_RESULT_BYTES, twice MAINBOX_MAX_STDOUT_BYTES and MAINBOX_MAX_FILES_BYTES in base64 must be at most 6291456 together on AWS Lambda"
        );
    }

    #[test]
    fn every_bad_value_is_refused_with_a_sentence_that_names_the_variable() {
        let rows = [
            ("PORT", "65536"),
            ("PORT", "http"),
            ("MAINBOX_RATE", "60"),
            ("MAINBOX_PROXIES", "11"),
            ("MAINBOX_CORS", "example.com"),
            ("MAINBOX_PAGE", "yes"),
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
            ("MAINBOX_ARCHIVE", "mainbox.archive"),
            ("MAINBOX_ARCHIVE", "/nowhere/mainbox.archive"),
            ("MAINBOX_QUEUE", "many"),
            ("MAINBOX_REST_SECONDS", "0"),
            ("MAINBOX_MAX_SCRIPT_BYTES", "0"),
            ("MAINBOX_MAX_STDOUT_BYTES", "1e6"),
            ("MAINBOX_MAX_RESULT_BYTES", ""),
            ("MAINBOX_MAX_FILES_BYTES", "67108865"),
            ("MAINBOX_SCRATCH_MB", "9999"),
            ("MAINBOX_METRICS", "statsd"),
            ("MAINBOX_POLICY", "loose"),
            ("MAINBOX_FLOOR", "chroot"),
        ];
        // Its value is secret, and so not told.
        for variable in VARIABLES.iter().filter(|variable| variable.name != "MAINBOX_API_KEYS") {
            assert!(rows.iter().any(|(name, _)| *name == variable.name), "{}", variable.name);
        }
        for (name, value) in rows {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name), "{name}={value}: {error}");
            assert!(error.ends_with(&format!("not `{value}`")), "{error}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        assert_eq!(
            read(&[("MAINBOX_TIMEOUT", "3")]).unwrap_err().to_string(),
            "MAINBOX_TIMEOUT is not a setting of mainbox; the README lists them all"
        );
    }

    #[test]
    fn fractions_of_a_second_are_a_timeout() {
        let config = read(&[("MAINBOX_TIMEOUT_SECONDS", "0.25")]).unwrap();
        assert_eq!(config.timeout, Duration::from_millis(250));
    }
}
