//! mainbox runs `main()` of a Python script that nobody trusts, and answers with the JSON that it returned and what it
//! printed.
//!
//! The way of a request: [`front`] -> [`handler`] -> [`executor`] -> a worker in the [`sandbox`] -> outcome -> response.

pub mod answer;
pub mod api;
pub mod archive;
pub mod body;
pub mod budget;
pub mod client;
pub mod config;
pub mod cors;
pub mod emf;
pub mod executor;
pub mod files;
pub mod front;
pub mod handler;
pub mod json;
pub mod keys;
pub mod log;
pub mod metrics;
pub mod page;
pub mod python;
pub mod rate;
pub mod record;
pub mod sandbox;
mod values;
pub mod variables;
