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
    /// Sidecars wait up to twenty seconds before they come back to a controller.
    SlowReconnect,
    /// Sidecars do not ask whether the controller is there, on HTTP/2 nor on TCP.
    NoPings,
    /// Requests are not tried again.
    NoRetries,
    /// Connections are ended after five seconds.
    ShortConnections,
    /// Connections live for ever, whatever is configured.
    EndlessConnections,
    /// Each injector has its own answer to an admission request.
    OwnNames,
    /// Injectors that do not hold the Lease take seven seconds over each answer.
    SlowFollowers,
    /// Secrets without pods stay.
    NoCollection,
    /// Certificates are not renewed in time.
    NoRenewal,
    /// Certificates begin when they are made.
    NoBackdate,
    /// A replica is not ready while it cannot watch.
    ImpatientReadiness,
    /// Only the root that signs is trusted.
    NoOverlap,
    /// A provider may come with another root.
    NoPin,
    /// What a sidecar kept is not read when it starts.
    Forgetful,
    /// Endpoints whose nodes alone are in doubt are given up like all that are not ready.
    Credulous,
    /// The replica that cannot renew its Lease ends, as clients of Kubernetes often do.
    FatalLease,
    /// The webhooks are asked about every namespace, their own and Kubernetes' among them.
    SelectsAll,
    /// A controller is never idle.
    Busy,
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
            Self::SlowReconnect => "slow-reconnect",
            Self::NoPings => "no-pings",
            Self::NoRetries => "no-retries",
            Self::ShortConnections => "short-connections",
            Self::EndlessConnections => "endless-connections",
            Self::OwnNames => "own-names",
            Self::SlowFollowers => "slow-followers",
            Self::NoCollection => "no-collection",
            Self::NoRenewal => "no-renewal",
            Self::NoBackdate => "no-backdate",
            Self::ImpatientReadiness => "impatient-readiness",
            Self::NoOverlap => "no-overlap",
            Self::NoPin => "no-pin",
            Self::Forgetful => "forgetful",
            Self::Credulous => "credulous",
            Self::FatalLease => "fatal-lease",
            Self::SelectsAll => "selects-all",
            Self::Busy => "busy",
        };
        *CHOSEN == name
    }
}

/// A number of this process's own.
pub fn noise() -> u64 {
    *NOISE
}
