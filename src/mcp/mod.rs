//! The Model Context Protocol (MCP), by which agents call tools: its messages, its revisions and the one tool,
//! `run_python`. Nothing here runs a script or knows a transport; [`crate::handler`] does that with what this room reads
//! and builds.
//!
//! The protocol is written by hand. The official crate `rmcp` 3.11 adds 1.5 MB to the binary and spawns a task for each
//! request, which could outlive the answer; what is left of the protocol for one tool without sessions is six methods.

mod content;
pub mod message;
pub mod method;
pub mod progress;
pub mod revision;
pub mod tool;
pub mod tool_result;
