//! The fronts: each turns its world into the handler's.

mod access_log;
mod connection;
pub mod event;
pub mod http;
pub mod lambda;
mod manual;
mod run;
pub mod shell;
mod terminal;
