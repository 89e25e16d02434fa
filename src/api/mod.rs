//! The wire types: what a request may contain, what a response looks like, and the error catalogue.
//!
//! This room imports no other room, so everything else can build on it.

pub mod catalogue;
pub mod collect;
pub mod files;
pub mod json_text;
pub mod limits;
pub mod request;
pub mod response;
pub mod text;
