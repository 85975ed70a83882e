//! Endpoint assignments: the addresses behind an upstream cluster.

use osm_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};

use super::parts::ip_address;
use crate::ir::{self, ClusterEndpoints};

/// The EDS resource of a cluster. Without endpoints it has no locality either, and requests get 503 at once.
pub fn endpoints(cluster: &ClusterEndpoints) -> ClusterLoadAssignment {
    assignment(cluster.key.to_string(), &cluster.endpoints)
}

/// An assignment of these addresses, equal in locality, priority and weight.
pub(super) fn assignment(cluster_name: String, endpoints: &[ir::Endpoint]) -> ClusterLoadAssignment {
    let lb_endpoints: Vec<_> = endpoints.iter().map(lb_endpoint).collect();
    let locality = LocalityLbEndpoints {
        lb_endpoints,
        ..Default::default()
    };
    let endpoints = if endpoints.is_empty() {
        vec![]
    } else {
        vec![locality]
    };
    ClusterLoadAssignment {
        cluster_name,
        endpoints,
        ..Default::default()
    }
}

fn lb_endpoint(endpoint: &ir::Endpoint) -> LbEndpoint {
    let address = Some(ip_address(endpoint.address, endpoint.port));
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address,
            ..Default::default()
        })),
        ..Default::default()
    }
}
