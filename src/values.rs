//! Reading the values of variables, each strictly.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tower_http::cors::CorsLayer;

use crate::config::{ConfigError, Metrics, Policy, timeout_from_seconds};
use crate::cors;
use crate::rate::Rate;
use crate::sandbox::tier::Tier;

/// The variables as given, with one reader a type.
pub(crate) struct Values {
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) on_lambda: bool,
}

impl Values {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    pub(crate) fn number(
        &self,
        name: &'static str,
        default: u64,
        least: u64,
        most: u64,
    ) -> Result<u64, ConfigError> {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        let digits_only = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        value
            .parse()
            .ok()
            .filter(|number| digits_only && (least..=most).contains(number))
            .ok_or_else(|| bad(name, format!("a whole number from {least} to {most}"), value))
    }

    pub(crate) fn timeout(&self) -> Result<Duration, ConfigError> {
        const NAME: &str = "MAINBOX_TIMEOUT_SECONDS";
        let Some(value) = self.get(NAME) else {
            return Ok(Duration::from_secs(10));
        };
        value
            .parse()
            .ok()
            .and_then(timeout_from_seconds)
            .ok_or_else(|| bad(NAME, "a number of seconds above 0 and at most 300", value))
    }

    pub(crate) fn python(&self) -> Result<PathBuf, ConfigError> {
        const NAME: &str = "MAINBOX_PYTHON";
        match self.get(NAME) {
            Some("") => Err(bad(NAME, "the path of an interpreter", "")),
            Some(path) => Ok(PathBuf::from(path)),
            None => {
                let local = PathBuf::from(".venv/bin/python3");
                Ok(if local.exists() { local } else { PathBuf::from("python3") })
            }
        }
    }

    pub(crate) fn archive(&self) -> Result<Option<PathBuf>, ConfigError> {
        const NAME: &str = "MAINBOX_ARCHIVE";
        let Some(value) = self.get(NAME) else { return Ok(None) };
        let path = PathBuf::from(value);
        if path.is_absolute() && path.is_file() {
            Ok(Some(path))
        } else {
            Err(bad(NAME, "the absolute path of a file that `mainbox archive` wrote", value))
        }
    }

    pub(crate) fn preload(&self) -> Result<Vec<String>, ConfigError> {
        const NAME: &str = "MAINBOX_PRELOAD";
        let value = self.get(NAME).unwrap_or("numpy,pandas");
        let names: Vec<String> = value
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(String::from)
            .collect();
        let is_module = |name: &String| {
            name.split('.').all(|part| {
                !part.starts_with(|first: char| first.is_ascii_digit())
                    && !part.is_empty()
                    && part.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
            })
        };
        if names.iter().all(is_module) {
            Ok(names)
        } else {
            Err(bad(NAME, "module names separated by commas", value))
        }
    }

    pub(crate) fn rate(&self) -> Result<Option<Rate>, ConfigError> {
        const NAME: &str = "MAINBOX_RATE";
        let expected = "a number of requests and a period, such as 5/s, 60/min or 1000/h";
        let read = |value| Rate::read(value).ok_or_else(|| bad(NAME, expected, value));
        self.get(NAME).map(read).transpose()
    }

    pub(crate) fn cors(&self) -> Result<Option<CorsLayer>, ConfigError> {
        const NAME: &str = "MAINBOX_CORS";
        let expected =
            "* or origins such as https://example.com, without a path, separated by commas";
        let read = |value| cors::read(value).ok_or_else(|| bad(NAME, expected, value));
        self.get(NAME).map(read).transpose()
    }

    pub(crate) fn page(&self) -> Result<bool, ConfigError> {
        match self.get("MAINBOX_PAGE") {
            None | Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(other) => Err(bad("MAINBOX_PAGE", "on or off", other)),
        }
    }

    pub(crate) fn metrics(&self) -> Result<Metrics, ConfigError> {
        match self.get("MAINBOX_METRICS") {
            None | Some("off") => Ok(Metrics::Off),
            Some("emf") => Ok(Metrics::Emf),
            Some(other) => Err(bad("MAINBOX_METRICS", "off or emf", other)),
        }
    }

    pub(crate) fn policy(&self) -> Result<Policy, ConfigError> {
        match self.get("MAINBOX_POLICY") {
            None | Some("standard") => Ok(Policy::Standard),
            Some("off") => Ok(Policy::Off),
            Some("strict") => Ok(Policy::Strict),
            Some(other) => Err(bad("MAINBOX_POLICY", "off, standard or strict", other)),
        }
    }

    pub(crate) fn floor(&self) -> Result<Option<Tier>, ConfigError> {
        match self.get("MAINBOX_FLOOR") {
            None if self.on_lambda => Ok(Some(Tier::Rlimits)),
            None => Ok(Some(Tier::Seccomp)),
            Some("none") => Ok(None),
            Some(value) => {
                Tier::ALL.into_iter().find(|tier| tier.name() == value).map(Some).ok_or_else(|| {
                    bad("MAINBOX_FLOOR", "namespaces, seccomp, rlimits or none", value)
                })
            }
        }
    }
}

fn bad(name: &'static str, expected: impl Into<String>, value: &str) -> ConfigError {
    ConfigError::Bad { name, expected: expected.into(), value: value.to_owned() }
}
