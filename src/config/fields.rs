//! The configuration as one struct.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::choices::{InvokeMode, Metrics, Origins, Platform, Policy, Tier};
use crate::api::limits::RequestLimits;
use crate::callers::api_keys::ApiKeys;
use crate::callers::rate_limit::Rate;

/// The whole configuration, checked. The table in [`super::settings`] gives every default and range.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the process runs.
    pub platform: Platform,
    /// TCP port of the HTTP front.
    pub port: u16,
    /// The address to listen on; `None` listens on all addresses.
    pub host: Option<IpAddr>,
    /// The interpreter as configured; [`crate::python`] resolves it.
    pub python: PathBuf,
    /// The API keys; without any, every caller may run scripts.
    pub api_keys: Option<ApiKeys>,
    /// How long Python and the preloaded modules may take to start.
    pub start_timeout: Duration,
    /// How many scripts each caller may run; `None` sets no limit.
    pub rate: Option<Rate>,
    /// How many trusted proxies in front append to `X-Forwarded-For`.
    pub proxies: usize,
    /// Which pages may call the service from a browser; `None` allows none.
    pub cors: Option<Origins>,
    /// The host names under which a service that listens on loopback answers, besides those of loopback.
    pub hosts: Vec<String>,
    /// Whether browsers get the playground page.
    pub playground: bool,
    /// Whether agents get the endpoint `/mcp`.
    pub mcp: bool,
    /// Whether the service ends when its standard input does.
    pub end_with_stdin: bool,
    /// The modules that the preloaded zygote imports.
    pub preload: Vec<String>,
    /// The bytecode archive to import them from.
    pub archive: Option<PathBuf>,
    /// Wall time limit of a script.
    pub timeout: Duration,
    /// Memory limit of a script on top of the preloaded interpreter, bytes.
    pub memory_bytes: u64,
    /// Scripts that run at once.
    pub concurrency: usize,
    /// CPUs that a script with several threads may use on average.
    pub cpus_per_script: usize,
    /// Requests that may wait for a worker.
    pub queue: usize,
    /// How long each of them may wait.
    pub queue_timeout: Duration,
    /// Time without a request after which one spare worker of each kind is kept.
    pub idle_after: Duration,
    /// Largest script, bytes.
    pub max_script_bytes: usize,
    /// Most inputs of a request.
    pub max_inputs: usize,
    /// Bytes of stdout and of stderr that are returned.
    pub max_stdout_bytes: usize,
    /// Largest result as JSON, bytes.
    pub max_result_bytes: usize,
    /// Largest total size of the returned files, bytes.
    pub max_files_bytes: usize,
    /// Size of the scratch directory, and of the largest file in it, bytes.
    pub scratch_bytes: u64,
    /// Where execution metrics are printed.
    pub metrics: Metrics,
    /// How AWS Lambda receives responses.
    pub invoke_mode: InvokeMode,
    /// What is refused before a script runs.
    pub policy: Policy,
    /// The weakest tier that may serve; `None` serves without a sandbox too.
    pub floor: Option<Tier>,
    /// The lowest level that is logged; `None` leaves it to the platform.
    pub log: Option<tracing::Level>,
}

impl Config {
    /// A configuration before any setting is read. Every field without a default in the table keeps its value.
    pub(super) fn blank(platform: Platform) -> Config {
        Config {
            platform,
            port: 0,
            host: None,
            python: PathBuf::new(),
            api_keys: None,
            start_timeout: Duration::ZERO,
            rate: None,
            proxies: 0,
            cors: None,
            hosts: vec![],
            playground: false,
            mcp: false,
            end_with_stdin: false,
            preload: vec![],
            archive: None,
            timeout: Duration::ZERO,
            memory_bytes: 0,
            concurrency: 0,
            cpus_per_script: 0,
            queue: 0,
            queue_timeout: Duration::ZERO,
            idle_after: Duration::ZERO,
            max_script_bytes: 0,
            max_inputs: 0,
            max_stdout_bytes: 0,
            max_result_bytes: 0,
            max_files_bytes: 0,
            scratch_bytes: 0,
            metrics: Metrics::Off,
            invoke_mode: InvokeMode::Buffered,
            policy: Policy::Strict,
            floor: Some(Tier::Namespaces),
            log: None,
        }
    }

    /// The limits of what a request contains.
    pub fn request_limits(&self) -> RequestLimits {
        RequestLimits { max_script_bytes: self.max_script_bytes, max_inputs: self.max_inputs }
    }

    /// The largest response body that the limits allow, without the growth of escaping, bytes.
    pub fn response_bytes(&self) -> usize {
        self.max_result_bytes + 2 * self.max_stdout_bytes + (self.max_files_bytes * 4).div_ceil(3)
    }
}
