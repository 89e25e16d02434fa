//! The fronts: each turns its world into the handler's.

pub mod event;
pub mod http;
pub mod lambda;
pub mod shell;
