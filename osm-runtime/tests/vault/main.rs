//! Against a real Vault on loopback: its PKI engine, its refusals, its absence, and its return as somebody else. Runs
//! when asked for by name: `make provider-test` builds the program and names it in `OSM_VAULT`.
#![allow(clippy::unwrap_used)]

mod boot;
mod renewal;
mod secrets;
mod server;
mod signing;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use osm_core::{
    certificate::{Profile, ROOT_LIFETIME},
    identity::TrustDomain,
};
use osm_runtime::issuer::{
    Authority, IssueError, Issuer, KeyKind, LeafRequest, Provider, StoredRoot, VaultOptions,
};

/// Longest wait for anything here: an attempt that hangs takes 15 s, the longest rest between two of them 30.
const SOON: Duration = Duration::from_secs(90);

/// A CA that was made now.
fn ca() -> StoredRoot {
    Authority::generate(KeyKind::P256, Timestamp::now()).unwrap()
}

/// One that is over in so many seconds, or has been since.
fn ca_over_in(seconds: i64) -> StoredRoot {
    let life = SignedDuration::try_from(ROOT_LIFETIME).unwrap();
    let made = Timestamp::now() + SignedDuration::from_secs(seconds) - life;
    Authority::generate(KeyKind::P256, made).unwrap()
}

/// An issuer whose root is remembered nowhere.
async fn open(options: VaultOptions) -> Result<Issuer, IssueError> {
    let provider = Provider::Vault {
        options,
        memory: None,
    };
    Issuer::open(secrets::Secrets::default().client(), &provider, |_| {}).await
}

fn request(profile: Profile, seconds: u64) -> LeafRequest {
    LeafRequest::new(profile, Duration::from_secs(seconds))
}

fn ads(seconds: u64) -> LeafRequest {
    request(Profile::ads(&TrustDomain::default()), seconds)
}
