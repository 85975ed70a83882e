//! How long certificates live and when they are renewed.
//!
//! Owns the numbers. Invariant: a certificate is due for renewal no later than half its life, so that the other half
//! is what an outage of the control plane may take.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::api::duration;

/// How far a certificate's start is set back, so that clocks may differ that much between nodes: by an hour, as after a
/// wrong time zone or daylight saving, and five minutes. It is a new key's past, in which nobody had it.
pub const BACKDATE: Duration = Duration::from_secs(65 * 60);
/// Life of a new Tresor root: the original's 87600 h.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(87_600 * 3_600);
/// Life of the ADS server's and the webhooks' certificates: in memory only, so short costs nothing.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
/// Life of the certificate a sidecar proves itself to the controller with, unless configured.
pub const BOOTSTRAP_LIFETIME: Duration = Duration::from_secs(48 * 3_600);
/// Life of a service's certificate, unless configured: the original's default.
pub const DEFAULT_SERVICE_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
/// Shortest life a certificate is issued with: the original's bound.
pub const MIN_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// The life of service certificates from MeshConfig's `serviceCertValidityDuration`: the default when the text is
/// malformed, at least [`MIN_LIFETIME`], at most the life of a root.
pub fn service_lifetime(text: &str) -> Duration {
    duration::parse(text).map_or(DEFAULT_SERVICE_LIFETIME, |wanted| {
        wanted.clamp(MIN_LIFETIME, ROOT_LIFETIME)
    })
}

/// The time a certificate is good for, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Validity {
    /// First instant it is valid.
    pub not_before: Timestamp,
    /// Last instant it is valid.
    pub not_after: Timestamp,
}

impl Validity {
    /// The validity of a certificate issued `now` to live for `lifetime`: back-dated by [`BACKDATE`], ending no later
    /// than its issuer, and no later than time itself can be represented.
    pub fn starting(now: Timestamp, lifetime: Duration, issuer: Option<Validity>) -> Self {
        let not_before = now.checked_sub(BACKDATE).unwrap_or(Timestamp::MIN);
        #[cfg(feature = "sabotage")]
        let not_before = if crate::sabotage::Fault::NoBackdate.is_on() {
            now
        } else {
            not_before
        };
        let not_after = now.checked_add(lifetime).unwrap_or(Timestamp::MAX);
        match issuer {
            Some(issuer) => Self {
                not_before,
                not_after: not_after.min(issuer.not_after),
            },
            None => Self {
                not_before,
                not_after,
            },
        }
    }

    /// Whether it is valid at `now`.
    pub fn contains(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// What is left of it at `now`; zero once it is over.
    pub fn remaining(&self, now: Timestamp) -> Duration {
        Duration::try_from(self.not_after.duration_since(now)).unwrap_or(Duration::ZERO)
    }

    /// Its life, counted from when it was issued: what it was back-dated is not counted.
    pub fn lifetime(&self) -> Duration {
        let whole =
            Duration::try_from(self.not_after.duration_since(self.not_before)).unwrap_or(Duration::ZERO);
        match whole.checked_sub(BACKDATE) {
            Some(life) if !life.is_zero() => life,
            _ => whole,
        }
    }

    /// When to renew it: between 40 % and 50 % of its life, by `jitter` (0.0 to 1.0, chosen at random by the caller
    /// so that what was issued together is not renewed together; values outside are clamped).
    pub fn renew_at(&self, jitter: f64) -> Timestamp {
        let jitter = if jitter.is_finite() {
            jitter.clamp(0.0, 1.0)
        } else {
            0.0
        };
        let left = self.lifetime().mul_f64(0.5 + 0.1 * jitter);
        let left = SignedDuration::try_from(left).unwrap_or(SignedDuration::MAX);
        self.not_after.checked_sub(left).unwrap_or(self.not_before)
    }

    /// Whether half its life is over, or it is not valid at all: renewal cannot wait.
    pub fn due(&self, now: Timestamp) -> bool {
        !self.contains(now) || now >= self.renew_at(0.0)
    }

    /// The longest outage of the control plane that a certificate of this life always survives: the half that is
    /// left when renewal is due at the latest.
    pub fn outage_budget(lifetime: Duration) -> Duration {
        lifetime / 2
    }
}
