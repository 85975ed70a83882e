//! What a cluster or a listener refers to: the names Envoy subscribes to because of it.
//!
//! Owns the walk through the few messages that hold names. It is done once for each version of a resource, not once for
//! each fake Envoy.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use osm_core::resource::ResourceType;
use osm_proto::envoy::{
    config::{
        cluster::v3::{Cluster, cluster::ClusterDiscoveryType, cluster::DiscoveryType},
        core::v3::{TransportSocket, config_source::ConfigSourceSpecifier, transport_socket},
        listener::v3::{FilterChain, Listener, filter},
    },
    extensions::{
        filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
        transport_sockets::tls::v3::{
            CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, UpstreamTlsContext,
            common_tls_context::ValidationContextType,
        },
    },
};
use prost::{Message, Name};
use prost_types::Any;

/// Names of other resources.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct References {
    /// EDS.
    pub(crate) endpoints: Vec<String>,
    /// RDS.
    pub(crate) routes: Vec<String>,
    /// SDS.
    pub(crate) secrets: Vec<String>,
}

/// What the encoded resource refers to. Only clusters and listeners refer to anything.
pub(crate) fn of(kind: ResourceType, body: &[u8]) -> Result<References> {
    match kind {
        ResourceType::Cluster => cluster(body),
        ResourceType::Listener => listener(body),
        _ => Ok(References::default()),
    }
}

fn cluster(body: &[u8]) -> Result<References> {
    let cluster = Cluster::decode(body).context("a cluster cannot be read")?;
    let mut found = References::default();
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    if cluster.cluster_discovery_type == Some(eds) {
        let other = cluster.eds_cluster_config.map(|config| config.service_name);
        let name = other.filter(|name| !name.is_empty()).unwrap_or(cluster.name);
        found.endpoints.push(name);
    }
    let mut secrets = BTreeSet::new();
    if let Some(context) = socket::<UpstreamTlsContext>(cluster.transport_socket.as_ref())? {
        secrets_of(context.common_tls_context, &mut secrets);
    }
    found.secrets = secrets.into_iter().collect();
    Ok(found)
}

fn listener(body: &[u8]) -> Result<References> {
    let listener = Listener::decode(body).context("a listener cannot be read")?;
    let (mut routes, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for chain in listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain)
    {
        if let Some(context) = socket::<DownstreamTlsContext>(chain.transport_socket.as_ref())? {
            secrets_of(context.common_tls_context, &mut secrets);
        }
        routes_of(chain, &mut routes)?;
    }
    Ok(References {
        endpoints: Vec::new(),
        routes: routes.into_iter().collect(),
        secrets: secrets.into_iter().collect(),
    })
}

fn routes_of(chain: &FilterChain, routes: &mut BTreeSet<String>) -> Result<()> {
    for filter in &chain.filters {
        if let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type
            && let Some(manager) = unpack::<HttpConnectionManager>(any)?
            && let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier
        {
            routes.insert(rds.route_config_name);
        }
    }
    Ok(())
}

fn secrets_of(context: Option<CommonTlsContext>, secrets: &mut BTreeSet<String>) {
    let Some(context) = context else { return };
    let own = context.tls_certificate_sds_secret_configs.into_iter();
    let peers = match context.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => Some(config),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            combined.validation_context_sds_secret_config
        }
        _ => None,
    };
    // Others come from elsewhere: a file, an agent.
    let is_ads = |config: &SdsSecretConfig| {
        let source = config.sds_config.as_ref();
        let source = source.and_then(|source| source.config_source_specifier.as_ref());
        matches!(source, Some(ConfigSourceSpecifier::Ads(_)))
    };
    secrets.extend(own.chain(peers).filter(is_ads).map(|config| config.name));
}

fn socket<M: Message + Name + Default>(socket: Option<&TransportSocket>) -> Result<Option<M>> {
    match socket.and_then(|socket| socket.config_type.as_ref()) {
        Some(transport_socket::ConfigType::TypedConfig(any)) => unpack(any),
        _ => Ok(None),
    }
}

/// The message, if it is one of this type.
fn unpack<M: Message + Name + Default>(any: &Any) -> Result<Option<M>> {
    if any.type_url != M::type_url() {
        return Ok(None);
    }
    let message = M::decode(any.value.as_slice()).with_context(|| format!("a {} cannot be read", M::NAME))?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use osm_core::{
        envoy,
        ir::{ClusterKey, ServiceKey, Settings, TargetPort, UpstreamCluster},
    };

    use super::*;

    #[test]
    fn an_upstream_cluster_refers_to_its_endpoints_and_two_secrets() {
        let key = ClusterKey {
            service: ServiceKey::new("shop", "web"),
            target_port: TargetPort::Number(80),
        };
        let cluster =
            envoy::upstream_cluster(&UpstreamCluster { key, servers: vec![] }, &Settings::default());
        let found = of(ResourceType::Cluster, &cluster.encode_to_vec()).unwrap();
        assert_eq!(found.endpoints, [cluster.name]);
        assert_eq!(found.secrets.len(), 2, "{found:?}");
        assert_eq!(
            of(ResourceType::Endpoint, b"whatever").unwrap(),
            References::default()
        );
        assert!(of(ResourceType::Cluster, b"\x0a\x05no").is_err());
    }
}
