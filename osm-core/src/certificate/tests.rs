#![allow(clippy::unwrap_used)]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use uuid::Uuid;

use super::*;
use crate::identity::{ProxyIdentity, ServiceIdentity, TrustDomain};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn ca(name: &str, key: &KeyPair) -> rcgen::Certificate {
    ca_params(name).self_signed(key).unwrap()
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2036, 1, 1);
    params
}

fn root(name: &str) -> Root {
    Root::from_der(ca(name, &KeyPair::generate().unwrap()).der()).unwrap()
}

fn leaf(profile: &Profile) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(profile.dns_names.clone()).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, &profile.common_name);
    let uris = profile
        .uris
        .iter()
        .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
    params.subject_alt_names.extend(uris);
    params.extended_key_usages = match profile.usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ],
    };
    let issuer = Issuer::new(ca_params("ca"), KeyPair::generate().unwrap());
    params.signed_by(&key, &issuer).unwrap().der().to_vec()
}

fn proxy(account: &str) -> ProxyIdentity {
    ProxyIdentity {
        uuid: Uuid::from_u128(7),
        service: ServiceIdentity::new("shop", account),
    }
}

#[test]
fn renewal_is_between_forty_and_fifty_percent_of_life() {
    let issued = at("2026-11-01T00:00:00Z");
    let day = Validity::starting(issued, DEFAULT_SERVICE_LIFETIME, None);
    assert_eq!(day.not_before, at("2026-10-31T22:55:00Z"));
    assert_eq!(day.lifetime(), DEFAULT_SERVICE_LIFETIME);
    assert_eq!(day.renew_at(0.0), at("2026-11-01T12:00:00Z"));
    assert_eq!(day.renew_at(1.0), at("2026-11-01T09:36:00Z"));
    assert!(!day.due(at("2026-11-01T11:59:59Z")));
    assert!(day.due(at("2026-11-01T12:00:00Z")));
    assert!(
        day.due(at("2026-10-31T00:00:00Z")),
        "not valid yet: the clock was wrong when it was issued"
    );
    assert_eq!(day.remaining(at("2026-11-03T00:00:00Z")), Duration::ZERO);
    assert_eq!(
        Validity::outage_budget(DEFAULT_SERVICE_LIFETIME),
        Duration::from_secs(12 * 3_600)
    );
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let issuer = root("ca").validity();
    let leaf = Validity::starting(at("2035-12-31T23:00:00Z"), DEFAULT_SERVICE_LIFETIME, Some(issuer));
    assert_eq!(leaf.not_after, issuer.not_after);
}

#[test]
fn service_lifetimes_are_bounded() {
    for (text, seconds) in [
        ("", 86_400),
        ("soon", 86_400),
        ("1s", 600),
        ("2h", 7_200),
        ("900000h", 315_360_000),
    ] {
        assert_eq!(service_lifetime(text), Duration::from_secs(seconds), "{text}");
    }
}

proptest! {
    #[test]
    fn lifetimes_never_overflow(now in -377_705_023_201_i64..=253_402_207_200, life in any::<u64>(), jitter in any::<f64>()) {
        let now = Timestamp::from_second(now).unwrap();
        let validity = Validity::starting(now, Duration::from_secs(life), None);
        let renew = validity.renew_at(jitter);
        prop_assert!(renew <= validity.not_after);
        prop_assert!(renew >= validity.not_before);
        validity.due(now);
    }

    #[test]
    fn hostile_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(Certificate::from_der(&bytes).is_err());
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(chain_from_pem(&text).is_err());
        prop_assert!(key_form(&text).is_err());
    }

    #[test]
    fn a_damaged_root_is_refused_or_read_but_never_panics(place in 0usize..400, byte in any::<u8>()) {
        let mut der = leaf(&Profile::ads(&TrustDomain::default()));
        let place = place % der.len();
        der[place] = byte;
        let _ = Root::from_der(&der);
        let _ = proxy_of(&der, &TrustDomain::default());
    }
}

#[test]
fn only_a_valid_ca_with_its_own_key_is_a_root() {
    let key = KeyPair::generate().unwrap();
    let root = Root::from_pem(&ca("ca", &key).pem()).unwrap();
    assert_eq!(root.check_validity(at("2030-01-01T00:00:00Z")), Ok(()));
    assert!(matches!(
        root.check_validity(at("2040-01-01T00:00:00Z")),
        Err(RootError::Expired(_))
    ));
    assert!(matches!(
        root.check_validity(at("2020-01-01T00:00:00Z")),
        Err(RootError::NotYetValid(_))
    ));
    assert_eq!(root.check_key(&key.subject_public_key_info()), Ok(()));
    let other = KeyPair::generate().unwrap();
    assert_eq!(
        root.check_key(&other.subject_public_key_info()),
        Err(RootError::KeyMismatch)
    );

    let leaf = leaf(&Profile::ads(&TrustDomain::default()));
    assert_eq!(Root::from_der(&leaf), Err(RootError::NotCa));
    let mut cannot_sign = ca_params("ca");
    cannot_sign.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    assert_eq!(
        Root::from_der(cannot_sign.self_signed(&key).unwrap().der()),
        Err(RootError::NotCa)
    );
    let two = format!("{}{}", root.pem(), root.pem());
    assert_eq!(Root::from_pem(&two), Err(RootError::Several(2)));
    for bad in [
        "",
        "junk",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        &key.serialize_pem(),
    ] {
        let error = Root::from_pem(bad).expect_err(bad).to_string();
        assert!(
            !error.contains(&key.serialize_pem()[30..60]),
            "no key material in errors"
        );
    }
    let huge = "a".repeat(1_000_000);
    assert_eq!(
        Root::from_pem(&huge),
        Err(RootError::Parse(ParseError::TooLong(1_000_000)))
    );
}

#[test]
fn keys_are_read_in_every_common_form() {
    let block = |tag: &str| format!("-----BEGIN {tag}-----\nAAAA\n-----END {tag}-----\n");
    let form = |text: &str| key_form(text).map(|(form, _)| form);
    assert_eq!(form(&block("PRIVATE KEY")), Ok(KeyForm::Pkcs8));
    assert_eq!(form(&block("RSA PRIVATE KEY")), Ok(KeyForm::Pkcs1));
    assert_eq!(
        form(&format!("{}{}", block("EC PARAMETERS"), block("EC PRIVATE KEY"))),
        Ok(KeyForm::Sec1)
    );
    let encrypted =
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    for bad in [
        encrypted,
        &block("ENCRYPTED PRIVATE KEY"),
        &block("CERTIFICATE"),
        &block("PRIVATE KEY").repeat(2),
    ] {
        assert!(matches!(form(bad), Err(RootError::Key(_))), "{bad}");
    }
}

#[test]
fn bundles_are_the_same_in_any_order() {
    let (a, b) = (root("a"), root("b"));
    let one = TrustBundle::new([a.clone(), b.clone()]);
    let other = TrustBundle::new([b.clone()]).union(&TrustBundle::new([a.clone(), b.clone(), a]));
    assert_eq!(one, other);
    assert_eq!(one.pem(), other.pem());
    assert_eq!(one.roots().len(), 2);
    assert_eq!(TrustBundle::from_pem(one.pem()), Ok(one.clone()));
    assert_eq!(one.check_validity(at("2030-01-01T00:00:00Z")), Ok(()));
    assert!(one.check_validity(at("2040-01-01T00:00:00Z")).is_err());
    assert!(
        TrustBundle::default()
            .check_validity(at("2030-01-01T00:00:00Z"))
            .is_err()
    );
}

#[test]
fn what_a_profile_says_is_read_back() {
    let domain = TrustDomain::default();
    for profile in [
        Profile::service(&ServiceIdentity::new("shop", "book.buyer"), &domain),
        Profile::proxy(&proxy("book.buyer"), &domain),
        Profile::ads(&domain),
        Profile::webhook("osm-injector", "osm-system"),
    ] {
        let certificate = Certificate::from_der(&leaf(&profile)).unwrap();
        assert_eq!(
            certificate.common_name.as_deref(),
            Some(profile.common_name.as_str())
        );
        assert_eq!(
            (certificate.dns_names, certificate.uris),
            (profile.dns_names, profile.uris)
        );
        assert_eq!(certificate.usage, Some(profile.usage));
        assert!(!certificate.is_ca);
        assert!(certificate.validity.lifetime() > SignedDuration::ZERO.unsigned_abs());
    }
}

#[test]
fn only_an_xds_certificate_names_a_proxy() {
    let domain = TrustDomain::default();
    let good = Profile::proxy(&proxy("buyer"), &domain);
    assert_eq!(proxy_of(&leaf(&good), &domain), Ok(proxy("buyer")));

    // A service account may be named like a proxy: its service certificate still is none.
    let posing = ServiceIdentity::new("shop", format!("{}.sidecar.buyer", Uuid::from_u128(7)));
    let service = Profile::service(&posing, &domain);
    assert_eq!(service.common_name, good.common_name);
    assert!(matches!(
        proxy_of(&leaf(&service), &domain),
        Err(PeerError::Kind(_))
    ));

    let other_uri = Profile {
        uris: vec!["spiffe://cluster.local/a/b".into()],
        ..good.clone()
    };
    let two_uris = Profile {
        uris: [good.uris.clone(), good.uris.clone()].concat(),
        ..good.clone()
    };
    let server = Profile {
        usage: Usage::Server,
        ..good.clone()
    };
    let with_dns = Profile {
        dns_names: vec!["x.cluster.local".into()],
        ..good.clone()
    };
    for bad in [&other_uri, &two_uris, &server, &with_dns, &Profile::ads(&domain)] {
        assert!(proxy_of(&leaf(bad), &domain).is_err(), "{bad:?}");
    }
    assert!(matches!(
        proxy_of(&leaf(&good), &"other.mesh".parse().unwrap()),
        Err(PeerError::Name(_))
    ));
    assert!(matches!(proxy_of(b"junk", &domain), Err(PeerError::Parse(_))));
    let key = KeyPair::generate().unwrap();
    assert!(proxy_of(ca(&good.common_name, &key).der(), &domain).is_err());
}
