//! Faults that are built in on purpose, so that the drills can be seen to fail.
//!
//! Compiled with the cargo feature `sabotage` alone, which no release build has: `.ci/laws` proves it. Which fault is on,
//! the environment variable `OSM_SABOTAGE` says; that makes this the one module here that looks outside.

use std::{
    env,
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Versions differ from process to process.
    RandomVersions,
    /// A root that was made is used without looking which was stored.
    NoReadBack,
    /// The process ends as soon as it is told to leave.
    NoDrain,
    /// New streams are let in as fast as they come.
    NoLimiter,
}

static CHOSEN: LazyLock<String> = LazyLock::new(|| env::var("OSM_SABOTAGE").unwrap_or_default());
static NOISE: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));

impl Fault {
    /// Whether it is on.
    pub fn is_on(self) -> bool {
        let name = match self {
            Self::RandomVersions => "random-versions",
            Self::NoReadBack => "no-read-back",
            Self::NoDrain => "no-drain",
            Self::NoLimiter => "no-limiter",
        };
        *CHOSEN == name
    }
}

/// A number of this process's own.
pub fn noise() -> u64 {
    *NOISE
}
