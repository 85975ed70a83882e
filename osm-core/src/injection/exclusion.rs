//! What bypasses the sidecar: lists from the pod's annotations and from MeshConfig.
//!
//! Invariant: what is in an [`Exclusions`] is valid, each entry once, and safe to put on a command line.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;

use super::denial::{Denial, shorten};
use crate::api::{
    annotations::{
        INBOUND_PORT_EXCLUSION_LIST, OUTBOUND_IP_RANGE_EXCLUSION_LIST, OUTBOUND_IP_RANGE_INCLUSION_LIST,
        OUTBOUND_PORT_EXCLUSION_LIST,
    },
    mesh_config::TrafficSpec,
};

/// Most entries of one list. Each is a rule, or part of one, that every new connection is compared with.
const MAX_ENTRIES: usize = 500;

/// The lists of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Exclusions {
    pub(super) inbound_ports: Vec<u16>,
    pub(super) outbound_ports: Vec<u16>,
    pub(super) outbound_ranges: Vec<IpNet>,
    pub(super) only_outbound_ranges: Vec<IpNet>,
    pub(super) interfaces: Vec<String>,
}

impl Exclusions {
    /// The pod's lists and MeshConfig's, merged, and warnings.
    ///
    /// A bad entry of the pod's denies the pod: its author meant something. A bad entry of MeshConfig's is left out
    /// with a warning: one slip there must not keep the whole mesh from making pods.
    pub(super) fn of(pod: &Pod, traffic: &TrafficSpec) -> Result<(Self, Vec<String>), Denial> {
        let none = BTreeMap::new();
        let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
        let ports = |key| list(annotations, key, "ports from 1 to 65535", port);
        let ranges = |key| {
            list(
                annotations,
                key,
                "IP ranges such as 10.0.0.0/8 or fd00::/8",
                range,
            )
        };
        let mut warnings = Vec::new();
        let mut global_ports =
            |field, list: &[i32]| valid(field, list.iter().map(i32::to_string), port, &mut warnings);
        let inbound = global_ports("inboundPortExclusionList", &traffic.inbound_port_exclusion_list);
        let outbound = global_ports("outboundPortExclusionList", &traffic.outbound_port_exclusion_list);
        let mut global_ranges =
            |field, list: &[String]| valid(field, list.iter().cloned(), range, &mut warnings);
        let excluded = global_ranges(
            "outboundIPRangeExclusionList",
            &traffic.outbound_ip_range_exclusion_list,
        );
        let included = global_ranges(
            "outboundIPRangeInclusionList",
            &traffic.outbound_ip_range_inclusion_list,
        );
        let interfaces = traffic.network_interface_exclusion_list.iter().cloned();
        let interfaces = valid(
            "networkInterfaceExclusionList",
            interfaces,
            interface,
            &mut warnings,
        );

        let exclusions = Self {
            inbound_ports: merged(inbound, ports(INBOUND_PORT_EXCLUSION_LIST)?),
            outbound_ports: merged(outbound, ports(OUTBOUND_PORT_EXCLUSION_LIST)?),
            outbound_ranges: merged(ranges(OUTBOUND_IP_RANGE_EXCLUSION_LIST)?, excluded),
            only_outbound_ranges: merged(ranges(OUTBOUND_IP_RANGE_INCLUSION_LIST)?, included),
            interfaces: merged(interfaces, vec![]),
        };
        Ok((exclusions, warnings))
    }
}

/// An annotation's list. An empty value is an empty list; an empty entry (`80,,90`) is a slip.
fn list<T>(
    annotations: &BTreeMap<String, String>,
    key: &'static str,
    what: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Denial> {
    let Some(value) = annotations.get(key).filter(|value| !value.trim().is_empty()) else {
        return Ok(Vec::new());
    };
    let deny = |expected| Denial::Annotation {
        holder: "the pod".to_owned(),
        key,
        value: shorten(value),
        expected,
    };
    if value.split(',').count() > MAX_ENTRIES {
        return Err(deny(format!("use at most {MAX_ENTRIES} entries")));
    }
    let entry = |entry: &str| {
        let entry = entry.trim();
        parse(entry).ok_or_else(|| {
            deny(format!(
                "{:?} is not one of a comma separated list of {what}",
                shorten(entry)
            ))
        })
    };
    value.split(',').map(entry).collect()
}

fn valid<T>(
    field: &str,
    list: impl Iterator<Item = String>,
    parse: impl Fn(&str) -> Option<T>,
    warnings: &mut Vec<String>,
) -> Vec<T> {
    let mut entries = Vec::new();
    for (index, text) in list.enumerate() {
        match parse(text.trim()).filter(|_| index < MAX_ENTRIES) {
            Some(entry) => entries.push(entry),
            None => {
                let text = shorten(&text);
                warnings.push(format!(
                    "MeshConfig spec.traffic.{field}[{index}] is {text:?}: it is left out"
                ));
                if warnings.len() >= 8 {
                    break;
                }
            }
        }
    }
    entries
}

/// The first list, then what of the second is not in it.
fn merged<T: PartialEq>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
    let mut merged: Vec<T> = Vec::with_capacity(first.len() + second.len());
    for entry in first.into_iter().chain(second) {
        if !merged.contains(&entry) {
            merged.push(entry);
        }
    }
    merged
}

fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// A range; bits beyond its prefix are cleared, as iptables does.
fn range(text: &str) -> Option<IpNet> {
    text.parse().ok().map(|range: IpNet| range.trunc())
}

/// The kernel's own rule: at most 15 bytes, no slash, no white space. Commas would end the entry of a list.
fn interface(text: &str) -> Option<String> {
    let valid = (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/,\"'\\".contains(&byte))
        && !text.starts_with(['-', '!']);
    valid.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)], traffic: &TrafficSpec) -> Result<(Exclusions, Vec<String>), Denial> {
        let mut pod = Pod::default();
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        pod.metadata.annotations = Some(annotations.collect());
        Exclusions::of(&pod, traffic)
    }

    #[test]
    fn ports_are_the_meshs_then_the_pods_and_ranges_the_other_way_round() {
        let traffic = TrafficSpec {
            outbound_port_exclusion_list: vec![6379, 3306],
            outbound_ip_range_exclusion_list: vec!["10.0.0.0/8".to_owned()],
            network_interface_exclusion_list: vec!["net1".to_owned()],
            ..Default::default()
        };
        let annotations = [
            (OUTBOUND_PORT_EXCLUSION_LIST, "7070, 3306"),
            (OUTBOUND_IP_RANGE_EXCLUSION_LIST, "1.1.1.1/24,fd00::/8,10.0.0.0/8"),
            (INBOUND_PORT_EXCLUSION_LIST, ""),
        ];
        let (exclusions, warnings) = of(&annotations, &traffic).expect("valid");
        assert_eq!(exclusions.outbound_ports, [6379, 3306, 7070]);
        let ranges: Vec<String> = exclusions.outbound_ranges.iter().map(IpNet::to_string).collect();
        assert_eq!(ranges, ["1.1.1.0/24", "fd00::/8", "10.0.0.0/8"]);
        assert_eq!(exclusions.interfaces, ["net1"]);
        assert!(warnings.is_empty() && exclusions.inbound_ports.is_empty());
    }

    #[test]
    fn bad_entries_of_a_pod_are_denied_with_the_entry() {
        for (key, value) in [
            (OUTBOUND_PORT_EXCLUSION_LIST, "80,0"),
            (OUTBOUND_PORT_EXCLUSION_LIST, "-1"),
            (OUTBOUND_PORT_EXCLUSION_LIST, "+80"),
            (OUTBOUND_PORT_EXCLUSION_LIST, "65536"),
            (INBOUND_PORT_EXCLUSION_LIST, "http"),
            (INBOUND_PORT_EXCLUSION_LIST, "80,,90"),
            (OUTBOUND_IP_RANGE_EXCLUSION_LIST, "10.0.0.0"),
            (OUTBOUND_IP_RANGE_EXCLUSION_LIST, "10.0.0.0/33"),
            (OUTBOUND_IP_RANGE_INCLUSION_LIST, "10.0.0.0/8;-j ACCEPT"),
        ] {
            let denial = of(&[(key, value)], &TrafficSpec::default()).expect_err(value);
            assert!(denial.to_string().contains(key), "{denial}");
        }
        let many = vec!["80"; MAX_ENTRIES + 1].join(",");
        let denial =
            of(&[(OUTBOUND_PORT_EXCLUSION_LIST, &many)], &TrafficSpec::default()).expect_err("too many");
        assert!(denial.to_string().len() < 500, "{denial}");
    }

    #[test]
    fn bad_entries_of_mesh_config_are_left_out_with_a_warning() {
        let traffic = TrafficSpec {
            inbound_port_exclusion_list: vec![70_000, 22],
            network_interface_exclusion_list: vec!["eth0\n-A".to_owned(), "a,b".to_owned()],
            ..Default::default()
        };
        let (exclusions, warnings) = of(&[], &traffic).expect("pods go on");
        assert_eq!(exclusions.inbound_ports, [22]);
        assert!(exclusions.interfaces.is_empty());
        assert_eq!(warnings.len(), 3);
    }
}
