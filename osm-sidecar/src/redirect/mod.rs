//! Leads a pod's TCP traffic to Envoy.
//!
//! Owns the command line; [`rules`] is what is to be, [`iptables`] how it gets there. Invariant: it ends with success
//! only if all traffic that should go through Envoy does: a pod that cannot be redirected must not start.

mod iptables;
mod rules;

use std::{fs, net::IpAddr};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use ipnet::IpNet;

use iptables::Tool;
use rules::{Family, Redirection};

/// What is redirected, and what not.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// User Envoy runs as; its traffic passes.
    #[arg(long, default_value_t = 1500)]
    proxy_uid: u32,
    /// Port inbound connections are led to.
    #[arg(long, default_value_t = 15003)]
    inbound_port: u16,
    /// Port outbound connections are led to.
    #[arg(long, default_value_t = 15001)]
    outbound_port: u16,
    /// Ports that others reach without Envoy.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    inbound_port_exclusion_list: Vec<u16>,
    /// Ports that are reached elsewhere without Envoy.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    outbound_port_exclusion_list: Vec<u16>,
    /// IP ranges that are reached without Envoy.
    #[arg(long, value_delimiter = ',')]
    outbound_ip_range_exclusion_list: Vec<IpNet>,
    /// If given, the only IP ranges that are reached through Envoy.
    #[arg(long, value_delimiter = ',')]
    outbound_ip_range_inclusion_list: Vec<IpNet>,
    /// Network interfaces whose traffic does not go through Envoy.
    #[arg(long, value_delimiter = ',', value_parser = interface)]
    network_interface_exclusion_list: Vec<String>,
    /// Where Envoy reaches the application.
    #[arg(long, value_enum, default_value_t = LocalProxyMode::Localhost)]
    local_proxy_mode: LocalProxyMode,
    /// The pod's address, for `--local-proxy-mode=PodIP`.
    #[arg(long, env = "POD_IP", hide_env_values = true, default_value = "")]
    pod_ip: String,
    /// Prints what would be done, and does nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LocalProxyMode {
    /// At 127.0.0.1.
    #[value(name = "Localhost")]
    Localhost,
    /// At the pod's own address.
    #[value(name = "PodIP")]
    PodIp,
}

/// Redirects, for IPv4 and, where the kernel has it, IPv6.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let dry_run = arguments.dry_run;
    let redirection = redirection(arguments)?;
    for family in [Family::V4, Family::V6] {
        if dry_run {
            print!("# {family}\n{}", rules::transaction(&redirection, family, ""));
            continue;
        }
        if family == Family::V6 && !has_ipv6() {
            println!("this kernel has no IPv6: nothing to redirect there");
            continue;
        }
        match apply(&redirection, family) {
            Ok(tool) => println!("{family} traffic is redirected (by {tool})"),
            // Link-local addresses alone lead nowhere, and many nodes have no NAT for IPv6.
            Err(error) if family == Family::V6 && !has_routable_ipv6() => {
                println!(
                    "IPv6 traffic is not redirected, and the pod has no IPv6 address to need it: {error:#}"
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn redirection(arguments: Arguments) -> Result<Redirection> {
    let pod_ip = match arguments.local_proxy_mode {
        LocalProxyMode::Localhost => None,
        LocalProxyMode::PodIp => {
            let address: IpAddr = arguments.pod_ip.parse().with_context(|| {
                format!(
                    "--local-proxy-mode=PodIP needs --pod-ip or POD_IP to be an address, not {:?}",
                    arguments.pod_ip
                )
            })?;
            Some(address)
        }
    };
    Ok(Redirection {
        proxy_uid: arguments.proxy_uid,
        inbound_port: arguments.inbound_port,
        outbound_port: arguments.outbound_port,
        inbound_port_exclusions: arguments.inbound_port_exclusion_list,
        outbound_port_exclusions: arguments.outbound_port_exclusion_list,
        outbound_range_exclusions: arguments.outbound_ip_range_exclusion_list,
        outbound_range_inclusions: arguments.outbound_ip_range_inclusion_list,
        interface_exclusions: arguments.network_interface_exclusion_list,
        pod_ip,
    })
}

/// Tries the tools in turn; the kernel of the node decides which of them works.
fn apply(redirection: &Redirection, family: Family) -> Result<&'static str> {
    let mut failures = Vec::new();
    for tool in Tool::of(family) {
        let attempt = tool
            .save()
            .and_then(|present| tool.restore(&rules::transaction(redirection, family, &present)));
        match attempt {
            Ok(()) => return Ok(tool.name()),
            Err(error) => failures.push(format!("  {error:#}")),
        }
    }
    bail!(
        "{family} traffic cannot be redirected: the container needs the capabilities NET_ADMIN and NET_RAW, and the \
         node's kernel nf_tables or ip_tables with NAT, owner and multiport matches. What was tried:\n{}",
        failures.join("\n")
    )
}

fn has_ipv6() -> bool {
    fs::exists("/proc/net/if_inet6").unwrap_or(false)
}

/// Whether an interface has an address of global scope (fourth column `00`).
fn has_routable_ipv6() -> bool {
    let interfaces = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    interfaces
        .lines()
        .any(|line| line.split_whitespace().nth(3) == Some("00"))
}

/// A name that the kernel takes and that stays one word of one line in the rules.
fn interface(text: &str) -> Result<String, String> {
    let valid = (1..=15).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/\"'\\".contains(&byte))
        && !text.starts_with(['-', '!']);
    if valid {
        Ok(text.to_owned())
    } else {
        Err("not the name of a network interface".to_owned())
    }
}
