//! The fronts: each turns its world into the handler's.

pub mod http;
pub mod shell;
