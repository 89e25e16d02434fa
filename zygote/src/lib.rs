//! What runs in a zygote after its imports: the loop that forks and reaps workers, and the lockdown of each worker.
//!
//! A zygote is a Python process. It enters [`sys::mainbox_zygote`] with all packages imported, and from then on no Python
//! code runs in it. A worker is a fork of it. It takes every step of the lockdown here, and only then returns to Python.
//! If a step fails, the worker reports the step and ends, so no Python code runs in a worker that is not locked down.
//!
//! This crate is compiled twice. The supervisor uses the types of [`messages`] as a library. The build script of mainbox
//! also compiles the crate with `--cfg freestanding` into code without a C library, without relocations and without
//! writable data, so that it can be mapped at any address of a Python process that uses any C library. Such code cannot
//! panic: a panic needs relocations, and the build script refuses those.
//!
//! | module | contains |
//! |---|---|
//! | [`messages`] | what supervisor, zygote and worker send each other |
//! | [`serve`] | the loop |
//! | [`children`] | the workers that are not reaped yet |
//! | [`decimal`] | the shortest decimal number for a double |
//! | [`heap`] | the memory that moves into files once a zygote has imported its modules |
//! | [`json`] | the JSON of long results |
//! | [`lockdown`] | the steps of a lockdown and their order |
//! | [`numbers`] | numbers from the kernel's headers |
//! | [`sys`] | system calls, and all `unsafe` code |
#![no_std]
#![cfg_attr(freestanding, no_main)]

#[cfg(test)]
extern crate std;

pub mod children;
pub mod decimal;
pub mod heap;
pub mod json;
pub mod lockdown;
pub mod messages;
pub mod numbers;
pub mod serve;
pub mod sys;
