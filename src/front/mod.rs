//! The fronts: each turns its world into requests of the handler.

pub mod http;
pub mod lambda;
pub mod shutdown;
