//! Route configurations: requests out of the pod, and into it.

mod inbound;
mod outbound;

use osm_proto::envoy::config::route::v3::RouteConfiguration;

pub use inbound::inbound_routes;
pub use outbound::outbound_routes;

use crate::ir::WeightedCluster;

/// A route configuration of this name. Its clusters are not looked up when it arrives: a cluster that comes late, or
/// is gone before its routes, then fails requests to itself and not the whole configuration.
fn configuration(name: &str) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        validate_clusters: Some(false),
        ..Default::default()
    }
}

/// The same shares with weights whose sum Envoy accepts (2^32 - 1 at most). Shares that were not zero stay so.
pub(super) fn within_bounds(clusters: &[WeightedCluster]) -> impl Iterator<Item = WeightedCluster> {
    let sum: u128 = clusters.iter().map(|share| u128::from(share.weight)).sum();
    let divisor = u32::try_from(sum.div_ceil(u128::from(u32::MAX / 2)).max(1)).unwrap_or(u32::MAX);
    clusters.iter().map(move |share| {
        let weight = if sum > u128::from(u32::MAX) {
            share.weight.div_ceil(divisor)
        } else {
            share.weight
        };
        WeightedCluster {
            cluster: share.cluster.clone(),
            weight,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_kept_or_scaled_down() {
        let scaled = |weights: &[u32]| -> Vec<u32> {
            let shares: Vec<_> = weights
                .iter()
                .map(|&weight| WeightedCluster {
                    cluster: String::new(),
                    weight,
                })
                .collect();
            within_bounds(&shares).map(|share| share.weight).collect()
        };
        assert_eq!(scaled(&[0, 90, 10]), [0, 90, 10]);
        assert_eq!(scaled(&[u32::MAX]), [u32::MAX]);
        for weights in [[u32::MAX, u32::MAX, 1, 0], [u32::MAX, 1, 1, 1], [u32::MAX; 4]] {
            let scaled = scaled(&weights);
            assert!(scaled.iter().map(|&weight| u64::from(weight)).sum::<u64>() <= u32::MAX.into());
            assert!(
                weights
                    .iter()
                    .zip(&scaled)
                    .all(|(before, after)| (*before == 0) == (*after == 0))
            );
        }
    }
}
