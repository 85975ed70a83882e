//! A Vault process, set up as `docs/certificates.md` tells operators to.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use http::Uri;
use osm_runtime::issuer::{StoredRoot, Token, VaultOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};
use zeroize::Zeroizing;

use super::SOON;

/// May ask for certificates and nothing else.
pub(super) const TOKEN: &str = "issues-only";
/// The same, another one.
pub(super) const SPARE_TOKEN: &str = "issues-only-too";
/// May do anything.
const ROOT_TOKEN: &str = "may-do-anything";
/// The role that the token may use.
pub(super) const ROLE: &str = "openservicemesh";

/// The program, where there is one.
pub(super) fn program() -> Option<PathBuf> {
    let program = std::env::var_os("OSM_VAULT").map(PathBuf::from);
    assert!(
        program.is_some(),
        "OSM_VAULT is not set: run `make provider-test`"
    );
    program
}

/// A Vault with a CA; the process ends with the value.
pub(super) struct Server {
    process: Child,
    pub(super) port: u16,
    _folder: TempDir,
}

impl Server {
    /// Starts one on `port`, or on any when that is 0.
    pub(super) async fn start(program: &Path, ca: &StoredRoot, port: u16) -> Self {
        Self::start_with(program, ca, port, json!({}), &[]).await
    }

    /// The same, with fields of the role changed, and further arguments.
    pub(super) async fn start_with(
        program: &Path,
        ca: &StoredRoot,
        port: u16,
        role: Value,
        arguments: &[String],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let setup = folder.path().join("setup.json");
        std::fs::write(&setup, steps(ca, role).to_string()).unwrap();
        let mut process = Command::new(program)
            .arg(format!("-address=127.0.0.1:{port}"))
            .arg(format!("-setup={}", setup.display()))
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = timeout(SOON, lines.next_line()).await.unwrap().unwrap();
        let line = line.expect("Vault ended; what it said is above");
        let port = line.rsplit(':').next().unwrap().parse().unwrap();
        Self {
            process,
            port,
            _folder: folder,
        }
    }

    /// Stops it where it stands, or lets it go on.
    pub(super) async fn signal(&self, signal: &str) {
        let pid = self.process.id().unwrap().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Ends it; the port is free again.
    pub(super) async fn end(mut self) -> u16 {
        self.process.kill().await.unwrap();
        self.port
    }

    pub(super) fn options(&self) -> VaultOptions {
        options(self.port)
    }

    /// A write with the token that may do anything.
    pub(super) async fn write(&self, path: &str, data: Value) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let body = data.to_string();
        let request = format!(
            "PUT /v1/{path} HTTP/1.1\r\nhost: vault\r\nx-vault-token: {ROOT_TOKEN}\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    }
}

/// How to reach the Vault on a port.
pub(super) fn options(port: u16) -> VaultOptions {
    VaultOptions {
        address: format!("http://127.0.0.1:{port}").parse::<Uri>().unwrap(),
        role: ROLE.into(),
        token: literal(TOKEN),
        authorities: None,
    }
}

pub(super) fn literal(token: &str) -> Token {
    Token::Literal(Zeroizing::new(token.into()))
}

fn steps(ca: &StoredRoot, changes: Value) -> Value {
    let mut role = json!({
        "allow_any_name": true, "enforce_hostnames": false, "allowed_uri_sans": ["spiffe://*"],
        "client_flag": true, "server_flag": true, "key_type": "ec", "key_bits": 256, "max_ttl": "720h",
    });
    for (field, value) in changes.as_object().unwrap() {
        role[field] = value.clone();
    }
    let policy = format!(r#"path "pki/issue/{ROLE}" {{ capabilities = ["update"] }}"#);
    let token = |id: &str, policy: &str| {
        let data = json!({"id": id, "policies": [policy], "period": "24h"});
        json!({"path": "auth/token/create", "data": data})
    };
    json!([
        {"path": "sys/mounts/pki", "data": {"type": "pki", "config": {"max_lease_ttl": "87600h"}}},
        {"path": "pki/config/ca", "data": {"pem_bundle": format!("{}{}", ca.certificate, *ca.key)}},
        {"path": format!("pki/roles/{ROLE}"), "data": role},
        {"path": "sys/policies/acl/osm", "data": {"policy": policy}},
        token(TOKEN, "osm"),
        token(SPARE_TOKEN, "osm"),
        token(ROOT_TOKEN, "root"),
    ])
}
