//! The table of names that mainbox reads from its environment; `config` reads them.

/// A row of the configuration table. The README shows the same rows; a test compares the two.
#[derive(Debug)]
pub struct Variable {
    /// Name in the environment.
    pub name: &'static str,
    /// Default as people read it.
    pub default: &'static str,
    /// What it does, with its unit and range.
    pub meaning: &'static str,
}

/// Every name that mainbox reads from its environment.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: "PORT",
        default: "8080",
        meaning: "TCP port of the HTTP front, on all addresses",
    },
    Variable {
        name: "MAINBOX_API_KEYS",
        default: "none",
        meaning: "keys of at least 16 characters, separated by commas, or `@` and a file with one a line: who has none of them is `unauthorized`",
    },
    Variable {
        name: "MAINBOX_RATE",
        default: "none",
        meaning: "scripts that each key, or without keys each address, may have run by this process, such as `60/min`; `s`, `min` or `h`; beyond it `rate_limited`",
    },
    Variable {
        name: "MAINBOX_PROXIES",
        default: "0; on Cloud Run 1",
        meaning: "proxies in front that append to X-Forwarded-For, and so tell the address of a client, 0 to 10",
    },
    Variable {
        name: "MAINBOX_CORS",
        default: "none",
        meaning: "origins whose pages may call from a browser, separated by commas, or `*` for all",
    },
    Variable {
        name: "MAINBOX_PAGE",
        default: "on",
        meaning: "`off`: browsers get the index of `GET /` too, and no page to try it",
    },
    Variable {
        name: "MAINBOX_PYTHON",
        default: ".venv/bin/python3, else python3 on PATH",
        meaning: "the interpreter, CPython 3.11 or newer",
    },
    Variable {
        name: "MAINBOX_PRELOAD",
        default: "numpy,pandas",
        meaning: "modules imported before any request; what is not installed is named in a warning",
    },
    Variable {
        name: "MAINBOX_ARCHIVE",
        default: "none",
        meaning: "file made by `mainbox archive`, from which preloaded modules are imported faster where files are slow",
    },
    Variable {
        name: "MAINBOX_TIMEOUT_SECONDS",
        default: "10",
        meaning: "wall time of a script, fractions allowed, above 0 and at most 300",
    },
    Variable {
        name: "MAINBOX_MEMORY_MB",
        default: "256",
        meaning: "memory of a script on top of the preloaded interpreter, 16 to 65536",
    },
    Variable {
        name: "MAINBOX_CONCURRENCY",
        default: "the CPUs this process really has; on AWS Lambda 1",
        meaning: "scripts running at once, 1 to 256",
    },
    Variable {
        name: "MAINBOX_QUEUE",
        default: "64",
        meaning: "requests waiting for their turn, 0 to 10000; beyond it `busy`",
    },
    Variable {
        name: "MAINBOX_REST_SECONDS",
        default: "60",
        meaning: "after so long without a request one spare worker of each kind is kept, to save memory; 1 to 86400",
    },
    Variable {
        name: "MAINBOX_MAX_SCRIPT_BYTES",
        default: "102400",
        meaning: "size of a script, 1 to 4194304",
    },
    Variable {
        name: "MAINBOX_MAX_STDOUT_BYTES",
        default: "1048576; on AWS Lambda 524288",
        meaning: "kept of stdout, and of stderr, 0 to 16777216; the rest is discarded",
    },
    Variable {
        name: "MAINBOX_MAX_RESULT_BYTES",
        default: "4194304",
        meaning: "size of the result as JSON, 2 to 67108864",
    },
    Variable {
        name: "MAINBOX_MAX_FILES_BYTES",
        default: "4194304; on AWS Lambda 524288",
        meaning: "size of all files that a script leaves in `outputs/`, 0 to 67108864",
    },
    Variable {
        name: "MAINBOX_SCRATCH_MB",
        default: "64",
        meaning: "size of a file in the scratch directory, 0 to 4096",
    },
    Variable {
        name: "MAINBOX_METRICS",
        default: "off",
        meaning: "`emf` prints a line of CloudWatch's embedded metric format on stdout for each execution on AWS Lambda",
    },
    Variable {
        name: "MAINBOX_POLICY",
        default: "standard",
        meaning: "what is refused before a script runs: `off`, `standard` or `strict`",
    },
    Variable {
        name: "MAINBOX_FLOOR",
        default: "seccomp; on AWS Lambda rlimits",
        meaning: "weakest isolation that may serve: `namespaces`, `seccomp`, `rlimits`; `none` is for development",
    },
];
