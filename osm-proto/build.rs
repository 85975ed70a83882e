//! Generates the Envoy API subset from the .proto files that the published `envoy-types` package carries.
//!
//! Two options make the result usable for content-hash versions and shared bytes (see ARCHITECTURE.md, law 3):
//! maps are ordered (`BTreeMap`) and byte fields are reference counted (`Bytes`).

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;
use prost::Message;

/// The messages the mesh writes or reads; everything they import comes with them.
const ROOTS: &[&str] = &[
    "envoy/service/discovery/v3/discovery.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/rbac/v3/rbac.proto",
    "envoy/config/metrics/v3/stats.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/direct_response/v3/config.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/admin/v3/config_dump.proto",
    "envoy/admin/v3/config_dump_shared.proto",
];

/// The include paths inside the package's `proto/` folder, one for each project the Envoy API imports from.
const INCLUDES: [&str; 8] = [
    "data-plane-api",
    "googleapis",
    "protoc-gen-validate",
    "xds",
    "cel-spec/proto",
    "client_model",
    "opentelemetry-proto",
    "ratelimit",
];

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=Cargo.toml");
    let folder = proto_folder()?;
    let includes = INCLUDES.map(|include| folder.join(include));
    let descriptors = protox::compile(ROOTS, includes).context("compiling the Envoy API")?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    prost_build::Config::new()
        .btree_map(["."])
        .bytes(["."])
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .include_file("api.rs")
        .compile_fds(descriptors)
        .context("generating the Envoy API")
}

/// The `proto/` folder of the `envoy-types` package that Cargo.lock names.
fn proto_folder() -> Result<PathBuf> {
    let metadata = MetadataCommand::new()
        .manifest_path("Cargo.toml")
        .exec()
        .context("cargo metadata")?;
    let package = metadata
        .packages
        .iter()
        .find(|package| package.name.as_str() == "envoy-types")
        .context("envoy-types is not in the dependency graph: it must be listed in osm-proto/Cargo.toml")?;
    let root = package
        .manifest_path
        .parent()
        .context("envoy-types has no folder")?;
    Ok(root.join("proto").into())
}
