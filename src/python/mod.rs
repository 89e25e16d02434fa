//! The Python installation: the interpreter that runs scripts, and the archive of preloaded bytecode.

pub mod bytecode_archive;
pub mod interpreter;
