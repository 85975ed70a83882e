//! The peer that this mesh is compared with: istiod, of the release that `e2e/programs/istiod` pins.
//!
//! Owns how it is started, who signs for it, and how its sidecars say who they are. It gets what is best for it: no limit
//! on new streams, no certificates to issue, no policy of its own to read. Its debounce is what it comes with.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;
use osm_core::{
    certificate::{BOOTSTRAP_LIFETIME, Profile, Usage},
    identity::ServiceIdentity,
};
use osm_e2e::{checkout::Checkout, cluster::programs::Programs, progress::Progress};
use osm_proto::envoy::config::core::v3::Node;
use osm_runtime::issuer::{Authority, KeyKind, LeafRequest};
use prost_types::{Struct, Value, value::Kind};
use serde_json::json;

use crate::{
    api::Api,
    fleet::{Contact, Introduction},
    population::{Size, address, object, pod_name},
};

/// Where istiod lives, as far as its certificate and its own objects say.
const NAMESPACE: &str = "istio-system";
/// How often its agents ping; it ends connections that do so twice as often.
pub(crate) const PING: Duration = Duration::from_secs(30);

/// What is needed to start istiod, again and again.
pub(crate) struct Istiod {
    program: PathBuf,
    folder: PathBuf,
    authority: Authority,
}

impl Istiod {
    /// Builds it if need be, and makes its certificates and its namespace.
    pub(crate) async fn prepare(api: &Api, progress: &Progress) -> Result<Self> {
        let folder = api.folder();
        let program = Programs::ensure_one(&Checkout::find()?, "istiod", progress)?;
        let now = jiff::Timestamp::now();
        let root = Authority::generate(KeyKind::P256, now)?;
        let authority = Authority::load(&root, now)?;
        let own = Profile::webhook("istiod", NAMESPACE);
        let own = authority.sign(&LeafRequest::new(own, BOOTSTRAP_LIFETIME), now)?;
        api.create(&object(
            "/api/v1/namespaces",
            json!({"metadata": {"name": NAMESPACE}}),
        ))
        .await?;
        fs::write(folder.join("istiod-ca.crt"), &root.certificate)?;
        fs::write(folder.join("istiod.crt"), &**own.chain_pem())?;
        fs::write(folder.join("istiod.key"), &*own.key_pem())?;
        Ok(Self {
            program,
            folder: folder.to_owned(),
            authority,
        })
    }

    /// Who signs for its sidecars.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Starts one on an address of its own.
    pub(crate) fn command(&self, host: IpAddr, kubeconfig: &Path) -> Command {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let at = |port: u16| SocketAddr::new(host, port).to_string();
        let mut command = Command::new(&self.program);
        command
            .args(["discovery", "--kubeconfig", &kubeconfig.display().to_string()])
            .args(["--caCertFile", &file("istiod-ca.crt")])
            .args(["--tlsCertFile", &file("istiod.crt")])
            .args(["--tlsKeyFile", &file("istiod.key")])
            .args(["--httpAddr", &at(8080), "--httpsAddr", &at(15017)])
            .args(["--grpcAddr", "", "--secureGRPCAddr", &at(15012)])
            .args(["--monitoringAddr", &at(15014)])
            .env("POD_NAMESPACE", NAMESPACE)
            .env("POD_NAME", "istiod")
            .env("ENABLE_CA_SERVER", "false")
            .env("INJECTION_WEBHOOK_CONFIG_NAME", "")
            .env("VALIDATION_WEBHOOK_CONFIG_NAME", "")
            .env("PILOT_MAX_REQUESTS_PER_SECOND", "100000");
        command
    }

    /// What it answers with 200 once it serves.
    pub(crate) fn readiness(host: IpAddr) -> (SocketAddr, &'static str) {
        (SocketAddr::new(host, 8080), "/ready")
    }

    /// How sidecars reach those on `hosts`.
    pub(crate) fn contact(hosts: &[IpAddr]) -> Contact {
        Contact {
            servers: hosts.iter().map(|host| (*host, 15012).into()).collect(),
            server_name: format!("istiod.{NAMESPACE}.svc"),
            ping: PING,
            watched: false,
        }
    }
}

/// How a sidecar of it says who it is: a SPIFFE name, and a node whose metadata name its pod.
pub(crate) fn introduction(size: &Size, proxy: usize) -> Introduction {
    let ServiceIdentity { namespace, name } = size.identity(proxy).service;
    let (pod, address) = (pod_name(proxy), address(proxy));
    let profile = Profile {
        common_name: String::new(),
        dns_names: Vec::new(),
        uris: vec![format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")],
        // It asks for a server's of clients, too.
        usage: Usage::Both,
    };
    let metadata = [
        ("NAMESPACE", &*namespace),
        ("SERVICE_ACCOUNT", &*name),
        ("CLUSTER_ID", "Kubernetes"),
        ("INSTANCE_IPS", &address.to_string()),
        ("ISTIO_VERSION", "1.31.0"),
    ];
    let fields = metadata.map(|(key, value)| (key.to_owned(), text(value)));
    let node = Node {
        id: format!("sidecar~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: format!("{name}.{namespace}"),
        metadata: Some(Struct {
            fields: fields.into(),
        }),
        ..Node::default()
    };
    Introduction {
        profile,
        node: Some(node),
    }
}

fn text(value: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    }
}
