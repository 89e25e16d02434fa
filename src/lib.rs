//! mainbox runs `main()` of untrusted Python scripts, each in a fresh sandboxed process, and returns the result as JSON.
//!
//! # How a request is served
//!
//! 1. A **front** ([`front::http`], [`front::lambda`]) or the command line ([`cli`]) turns its input into an HTTP request
//!    and passes it to the [`handler`].
//! 2. The handler identifies the caller ([`callers`]), reads the body within a limit on size, time and memory, and
//!    parses it ([`api`]).
//! 3. The [`executor`] waits for a run permit and takes a spare worker: a Python process that was forked ahead of time
//!    from a **zygote**, has numpy and pandas in memory, and has locked itself into the [`sandbox`].
//! 4. The worker runs the script and sends the result over a socket. The supervisor (this process) enforces every limit
//!    from outside and trusts nothing that a worker sends.
//! 5. The handler builds the response, the front sends it, and the worker is killed. Nothing of it remains for the next
//!    request. [`telemetry`] logs and counts the execution.
//!
//! # Modules
//!
//! | module | contains | imports |
//! |---|---|---|
//! | [`api`] | wire types, error catalogue, file names, JSON depth, text from strangers | nothing |
//! | [`callers`] | API keys, rate limit, client address, web pages | nothing |
//! | [`python`] | the interpreter, the bytecode archive | nothing |
//! | [`telemetry`] | log, metrics, execution record, request id | `api` |
//! | [`config`] | the table of settings | `api`, `callers` |
//! | [`sandbox`] | the policy as data, one mechanism per file | `config`, `python` |
//! | [`executor`] | admission, pools, zygotes, workers, self-test | all of the above except `callers` |
//! | [`mcp`] | the Model Context Protocol: messages, revisions, the tool `run_python` | `api`, `config`, `executor` |
//! | [`handler`] | endpoints and responses | all of the above |
//! | [`front`], [`cli`] | HTTP, AWS Lambda, commands | all of the above |
//!
//! The Python side is a separate package in `harness/`, and what runs in a zygote after its imports is the crate
//! [`mainbox_zygote`] in `zygote/`. Both are embedded in the binary.

pub mod api;
pub mod callers;
pub mod cli;
pub mod config;
pub mod executor;
pub mod front;
pub mod handler;
pub mod mcp;
pub mod python;
pub mod sandbox;
pub mod telemetry;
