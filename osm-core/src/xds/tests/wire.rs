//! Spliced bytes are the bytes `prost` writes.

use osm_proto::envoy::service::discovery::v3::{
    self as discovery, DeltaDiscoveryResponse, DiscoveryResponse,
};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::resource::Version;

fn written(response: &Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    response.encode(&mut bytes);
    assert_eq!(bytes.len(), response.encoded_len());
    bytes
}

proptest! {
    #[test]
    fn spliced_responses_are_what_prost_writes(
        kind in (0..5_usize).prop_map(|index| ResourceType::ALL[index]),
        nonce in any::<u64>(),
        resources in prop::collection::vec((".{0,300}", any::<u32>()), 0..4),
        removed in prop::collection::vec(".{0,200}", 0..4),
    ) {
        let resources: Vec<_> = resources.iter().map(|(name, value)| resource(kind, name, *value)).collect();
        let names: Vec<Arc<str>> = removed.iter().map(|name| name.as_str().into()).collect();
        let response = Response { kind, nonce, resources: resources.clone(), removed: names, version: None };
        let message = DeltaDiscoveryResponse {
            resources: resources
                .iter()
                .map(|resource| discovery::Resource::decode(resource.encoded().clone()).expect("decodes"))
                .collect(),
            type_url: kind.type_url().to_owned(),
            nonce: nonce.to_string(),
            removed_resources: removed,
            ..Default::default()
        };
        prop_assert_eq!(written(&response), message.encode_to_vec());

        let version = Version::of(b"all of them");
        let response = Response { removed: Vec::new(), version: Some(version), ..response };
        let message = DiscoveryResponse {
            version_info: version.to_string(),
            resources: resources
                .iter()
                .map(|resource| prost_types::Any::decode(resource.any()).expect("decodes"))
                .collect(),
            type_url: kind.type_url().to_owned(),
            nonce: nonce.to_string(),
            ..Default::default()
        };
        prop_assert_eq!(written(&response), message.encode_to_vec());
    }
}
