//! The values of settings that are one of a few names.

/// What the early check of a script refuses. The check gives honest scripts a clear message before they run. It is not a
/// security boundary: that is the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Checks the syntax and `main` only.
    Off,
    /// Also refuses modules and functions that can never work in the sandbox.
    Standard,
    /// Also refuses introspection, and a `main` that has no return statement.
    Strict,
}

impl Policy {
    /// Every policy, the most permissive first.
    pub const ALL: [Policy; 3] = [Policy::Off, Policy::Standard, Policy::Strict];

    /// The name in the configuration and in `/about`.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Off => "off",
            Policy::Standard => "standard",
            Policy::Strict => "strict",
        }
    }
}

/// Where execution metrics are printed, besides `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// Nowhere.
    Off,
    /// To stdout, in CloudWatch's embedded metric format.
    Emf,
}

/// How AWS Lambda receives responses. It is chosen when the process starts, as the function URL has one of the modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvokeMode {
    /// Whole, up to 6 MB.
    Buffered,
    /// Piece by piece, up to 200 MB.
    ResponseStream,
}

/// Where the process runs, as far as defaults depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// AWS Lambda, which hands requests to a runtime instead of connecting to a port.
    Lambda,
    /// Google Cloud Run, where one trusted proxy is in front.
    CloudRun,
    /// A laptop, a container, anything else.
    Elsewhere,
}

/// How strong the isolation of scripts is, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Namespaces around the zygote, and everything of `Seccomp`.
    Namespaces,
    /// A system call allow-list, Landlock and own uids where the host offers them, and everything of `Rlimits`.
    Seccomp,
    /// Resource limits under which a script can open no file and create no process.
    Rlimits,
}

impl Tier {
    /// Every tier, the strongest first.
    pub const ALL: [Tier; 3] = [Tier::Namespaces, Tier::Seccomp, Tier::Rlimits];

    /// The name in the configuration, in `/about` and in the `Mainbox-Isolation` header.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Namespaces => "namespaces",
            Tier::Seccomp => "seccomp",
            Tier::Rlimits => "rlimits",
        }
    }
}

/// Which web pages may call the service from a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Every page.
    Any,
    /// The pages of these origins, each as browsers send it: `https://example.com`.
    Only(Vec<http::HeaderValue>),
}

impl Origins {
    /// Reads `*`, or origins separated by commas. Returns `None` when one of them is malformed.
    pub fn read(text: &str) -> Option<Origins> {
        if text == "*" {
            return Some(Origins::Any);
        }
        text.split(',').map(|part| origin(part.trim())).collect::<Option<_>>().map(Origins::Only)
    }
}

/// An origin as browsers send it: scheme and authority in lower case, without a path.
fn origin(text: &str) -> Option<http::HeaderValue> {
    let uri: http::Uri = text.parse().ok()?;
    let whole = format!("{}://{}", uri.scheme_str()?, uri.authority()?);
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_web && whole == text && text == text.to_ascii_lowercase())
        .then(|| http::HeaderValue::from_str(text).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_the_form_that_browsers_send() {
        assert_eq!(Origins::read("*"), Some(Origins::Any));
        for (text, count) in
            [("https://example.com", 1), ("http://localhost:3000, https://a.example", 2)]
        {
            let Some(Origins::Only(origins)) = Origins::read(text) else { panic!("{text}") };
            assert_eq!(origins.len(), count, "{text}");
        }
        for text in [
            "",
            "example.com",
            "https://example.com/",
            "https://Example.com",
            "ftp://example.com",
            "https://a.example,",
            "*, *",
            "null",
            "https://a b",
        ] {
            assert_eq!(Origins::read(text), None, "{text}");
        }
    }
}
