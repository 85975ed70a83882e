//! What of a pod matters here: its bootstrap files, its relay, its Envoy. Both processes are killed as the kernel would.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use osm_core::{
    envoy::bootstrap::{self, Bootstrap},
    identity::TrustDomain,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::server::{Pki, proxy};

fn envoy_program() -> PathBuf {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let path = set("OSM_ENVOY").unwrap_or_else(|| {
        let cache = set("OSM_CACHE").or_else(|| Some(set("XDG_CACHE_HOME")?.join("osm-e2e")));
        let cache = cache.or_else(|| Some(set("HOME")?.join(".cache/osm-e2e")));
        cache
            .expect("OSM_ENVOY, OSM_CACHE, XDG_CACHE_HOME or HOME is set")
            .join("envoy-1.40.0/envoy")
    });
    assert!(
        path.is_file(),
        "this test runs the real Envoy, and there is none at {}: `make unit-test` fetches it, or set OSM_ENVOY",
        path.display()
    );
    path
}

/// A process that is killed when it is dropped, with `SIGKILL`.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Pod {
    folder: TempDir,
    controller: SocketAddr,
    port: u16,
    pub(crate) relay: Option<Process>,
    pub(crate) envoy: Option<Process>,
}

impl Pod {
    /// A pod whose containers do not run yet.
    pub(crate) async fn new(pki: &Pki, controller: SocketAddr) -> Self {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        let leaf = pki.sidecar(&proxy(1)).await;
        fs::write(path(bootstrap::CERTIFICATE), leaf.chain_pem().as_bytes()).unwrap();
        fs::write(path(bootstrap::KEY), leaf.key_pem().as_bytes()).unwrap();
        fs::write(path(bootstrap::ROOT), pki.roots().pem().as_bytes()).unwrap();
        fs::create_dir(path("volume")).unwrap();
        let trust_domain = TrustDomain::default();
        let rendered = Bootstrap {
            uuid: proxy(1).uuid,
            trust_domain: &trust_domain,
            controller_namespace: "osm-system",
            probes: &[],
            bind: "127.0.0.1".parse().unwrap(),
            directory: folder.path().to_str().unwrap(),
            relay: path("volume").to_str(),
        }
        .render();
        let mut config: Value = serde_json::from_str(&rendered).unwrap();
        any_port(&mut config);
        fs::write(path("bootstrap.json"), config.to_string()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self {
            folder,
            controller,
            port,
            relay: None,
            envoy: None,
        }
    }

    /// A pod with both running.
    pub(crate) async fn started(pki: &Pki, controller: SocketAddr) -> Self {
        let mut pod = Self::new(pki, controller).await;
        pod.start_relay();
        pod.start_envoy();
        pod
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn start_relay(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("relay-log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_osm-sidecar"));
        command
            .args(["relay", "--server-name", "ads.cluster.local", "--controller"])
            .arg(self.controller.to_string())
            .arg("--certificates")
            .arg(self.folder.path())
            .arg("--directory")
            .arg(self.path("volume"))
            .args(["--port", &self.port.to_string()]);
        self.relay = Some(run(command, log));
    }

    pub(crate) fn start_envoy(&mut self) {
        let _ = fs::remove_file(self.path("admin"));
        let log = fs::File::create(self.path("envoy-log")).unwrap();
        let mut command = Command::new(envoy_program());
        command
            .args([
                "--use-dynamic-base-id",
                "--concurrency",
                "1",
                "--service-cluster",
                "buyer.shop",
            ])
            .args(["--log-level", "info", "--admin-address-path"])
            .arg(self.path("admin"))
            .arg("-c")
            .arg(self.path("bootstrap.json"));
        self.envoy = Some(run(command, log));
    }

    /// Both are gone without a word.
    pub(crate) fn kill(&mut self) {
        self.envoy = None;
        self.relay = None;
    }

    /// What both have said, for messages of failures.
    pub(crate) fn logs(&self) -> String {
        let read = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
        format!("the relay:\n{}\nEnvoy:\n{}", read("relay-log"), read("envoy-log"))
    }

    /// One of Envoy's statistics; 0 when there is none of the name.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        value(
            &self.admin("/stats").await.unwrap_or_default(),
            &format!("{name}: "),
        )
    }

    /// One of the relay's numbers; 0 when there is none of the name.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let page = get(address, "pod", "/metrics").await.unwrap_or_default();
        value(&page, &format!("osm_relay_{name} "))
    }

    async fn admin(&self, page: &str) -> Option<String> {
        let address = fs::read_to_string(self.path("admin")).ok()?;
        get(address.trim().parse().ok()?, "admin", page).await
    }

    /// Waits until this holds.
    pub(crate) async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        for _ in 0..400 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{what} did not come; {}", self.logs());
    }

    /// Waits until Envoy has what it asked for.
    pub(crate) async fn ready(&self) {
        self.until("a listener", async || {
            self.stat("server.live").await == 1
                && self.stat("listener_manager.workers_started").await == 1
                && self.stat("listener_manager.total_listeners_active").await >= 1
                && self.stat("listener_manager.total_listeners_warming").await == 0
        })
        .await;
    }

    /// Waits until the relay has a whole configuration.
    pub(crate) async fn kept(&self) {
        self.until("a configuration to keep", async || {
            self.metric("kept_complete").await == 1
        })
        .await;
    }

    /// The status with which the service answers a request of the application through Envoy.
    pub(crate) async fn request(&self, host: &str) -> Option<u16> {
        let listeners = self.admin("/listeners?format=text").await?;
        let line = listeners
            .lines()
            .find(|line| line.starts_with("outbound-listener::"))?;
        let address = line.rsplit("::").next()?.parse().ok()?;
        let answer = get(address, host, "/books").await?;
        answer.split_whitespace().nth(1)?.parse().ok()
    }

    /// The counters of updates but those of secrets, which differ between controllers.
    pub(crate) async fn updates(&self) -> Vec<(String, u64)> {
        let page = self.admin("/stats").await.unwrap_or_default();
        let stats = page.lines().filter_map(|line| line.split_once(": "));
        let mut updates: Vec<_> = stats
            .filter(|(name, _)| {
                let counted = name.ends_with(".update_success") || name.ends_with(".update_rejected");
                counted && !name.contains("sds")
            })
            .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
            .collect();
        updates.sort();
        updates
    }

    pub(crate) async fn nothing_rejected(&self) {
        for (name, count) in self.updates().await {
            assert!(
                !name.ends_with("rejected") || count == 0,
                "{name} is {count}; {}",
                self.logs()
            );
        }
    }
}

fn run(mut command: Command, log: fs::File) -> Process {
    let output = log.try_clone().unwrap();
    let process = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(log)
        .spawn()
        .unwrap();
    Process(process)
}

/// Everything the bootstrap binds gets a free port.
fn any_port(config: &mut Value) {
    match config {
        Value::Array(list) => list.iter_mut().for_each(any_port),
        Value::Object(fields) => {
            if let Some(address) = fields.get_mut("socketAddress") {
                address["portValue"] = json!(0);
            }
            fields.values_mut().for_each(any_port);
        }
        _ => {}
    }
}

async fn get(address: SocketAddr, host: &str, path: &str) -> Option<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    };
    tokio::time::timeout(Duration::from_secs(10), exchange)
        .await
        .ok()?
}

fn value(page: &str, prefix: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(prefix));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Bytes of a file, 0 if there is none.
pub(crate) fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}
