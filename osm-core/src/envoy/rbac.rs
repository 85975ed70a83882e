//! Who may connect and who may send a request: Envoy's role-based access control.
//!
//! Invariant: an empty list of principals is nobody, never anybody. Envoy's `ALLOW` with no policy denies everything,
//! which is what an access rule without grants means.

use std::collections::BTreeMap;

use osm_proto::envoy::{
    config::{
        listener::v3::{Filter, filter::ConfigType},
        rbac::v3::{
            Permission, Policy, Principal, Rbac, permission,
            principal::{Authenticated, Identifier},
            rbac::Action,
        },
    },
    extensions::filters::{http::rbac::v3 as http, network::rbac::v3 as network},
};
use prost_types::Any;

use super::{matcher::exact, parts::any};
use crate::ir::ConnectionAccess;

/// The HTTP filter's name, under which routes override it.
pub(super) const HTTP_FILTER: &str = "envoy.filters.http.rbac";
/// The name of the one policy of a route.
const ROUTE_POLICY: &str = "rbac-for-route";

/// The network filter that closes the connections of everyone else.
pub(super) fn network_filter(access: &ConnectionAccess) -> Filter {
    let policies = access.grants.iter().filter_map(|(name, grant)| {
        let ports = grant
            .ports
            .iter()
            .map(|port| permission::Rule::DestinationPort((*port).into()));
        Some((name.clone(), policy(ports.collect(), &grant.principals)?))
    });
    let rbac = network::Rbac {
        rules: Some(allow(policies.collect())),
        stat_prefix: "network-".to_owned(),
        ..Default::default()
    };
    Filter {
        name: "l4_rbac".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&rbac))),
    }
}

/// The HTTP filter's own configuration: without rules, it lets requests pass whose route says nothing.
pub(super) fn http_filter() -> http::Rbac {
    http::Rbac::default()
}

/// A route's override of the HTTP filter: these principals pass, everyone else gets 403.
pub(super) fn route_override(principals: &[String]) -> Any {
    let policy = policy(vec![], principals);
    let policies = policy
        .map(|policy| (ROUTE_POLICY.to_owned(), policy))
        .into_iter()
        .collect();
    let rbac = http::Rbac {
        rules: Some(allow(policies)),
        ..Default::default()
    };
    any(&http::RbacPerRoute { rbac: Some(rbac) })
}

fn allow(policies: BTreeMap<String, Policy>) -> Rbac {
    Rbac {
        action: Action::Allow.into(),
        policies,
        ..Default::default()
    }
}

/// `None` for nobody: Envoy rejects a policy without principals.
fn policy(permissions: Vec<permission::Rule>, principals: &[String]) -> Option<Policy> {
    let permissions = if permissions.is_empty() {
        vec![permission::Rule::Any(true)]
    } else {
        permissions
    };
    let policy = Policy {
        permissions: permissions
            .into_iter()
            .map(|rule| Permission { rule: Some(rule) })
            .collect(),
        principals: principals.iter().map(|name| principal(name)).collect(),
        ..Default::default()
    };
    (!principals.is_empty()).then_some(policy)
}

/// Envoy compares the name with the peer certificate's URI names, else its DNS names, else its subject.
fn principal(name: &str) -> Principal {
    let authenticated = Authenticated {
        principal_name: Some(exact(name)),
    };
    Principal {
        identifier: Some(Identifier::Authenticated(authenticated)),
    }
}
