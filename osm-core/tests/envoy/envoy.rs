//! A real Envoy process, configured by files, asked through its admin endpoint.

use std::{
    env, fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{host::Host, resources::Resources};

/// Envoy's program: `$OSM_ENVOY`, or where `osm-e2e programs envoy` puts it.
pub(crate) fn program() -> PathBuf {
    let set = |name| {
        env::var_os(name)
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
        "these tests run the real Envoy, and there is none at {}: `make unit-test` fetches it, or set OSM_ENVOY",
        path.display()
    );
    path
}

/// How resources are put before Envoy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// As they are; for a network namespace of its own.
    Kept,
    /// Listeners and the admin endpoint get a free port, so that any number of Envoys runs on one machine.
    Any,
}

/// Files that configure an Envoy. What refers to ADS in the resources refers to files here; all else is unchanged.
pub(crate) struct Files {
    folder: TempDir,
    ports: Ports,
}

impl Files {
    pub(crate) fn new(resources: &Resources, ports: Ports) -> Self {
        let files = Self {
            folder: TempDir::new().unwrap(),
            ports,
        };
        files.update(resources);
        let xds = |kind: &str| {
            json!({ "resourceApiVersion": "V3", "initialFetchTimeout": "0s",
            "pathConfigSource": { "path": files.path(kind) } })
        };
        let dynamic = json!({
            "node": { "id": "test", "cluster": "test" },
            "admin": { "address": files.admin_address() },
            "overloadManager": connection_limit(),
            "dynamicResources": { "cdsConfig": xds("clusters"), "ldsConfig": xds("listeners") },
        });
        fs::write(files.path("dynamic"), dynamic.to_string()).unwrap();
        files
    }

    /// Writes the resources; a running Envoy sees the change.
    pub(crate) fn update(&self, resources: &Resources) {
        for resource in resources
            .endpoints
            .iter()
            .chain(&resources.routes)
            .chain(&resources.secrets)
        {
            let name = resource
                .get("clusterName")
                .or(resource.get("name"))
                .unwrap()
                .as_str()
                .unwrap();
            self.write(name, type_of(resource, resources), std::slice::from_ref(resource));
        }
        self.write("clusters", "envoy.config.cluster.v3.Cluster", &resources.clusters);
        self.write(
            "listeners",
            "envoy.config.listener.v3.Listener",
            &resources.listeners,
        );
        let listed = json!({
            "node": { "id": "test", "cluster": "test" },
            "overloadManager": connection_limit(),
            "staticResources": {
                "clusters": self.localised(&resources.clusters),
                "listeners": self.localised(&resources.listeners),
            },
        });
        fs::write(self.path("static"), listed.to_string()).unwrap();
    }

    fn admin_address(&self) -> Value {
        let port = if self.ports == Ports::Any { 0 } else { 15000 };
        json!({ "socketAddress": { "address": "127.0.0.1", "portValue": port } })
    }

    /// The file of a resource or list of them. Names have slashes and bars.
    fn path(&self, name: &str) -> PathBuf {
        let name: String = name
            .chars()
            .map(|it| if it.is_alphanumeric() { it } else { '_' })
            .collect();
        self.folder.path().join(format!("{name}.json"))
    }

    /// Replaces the file in one step: Envoy watches for the rename.
    fn write(&self, name: &str, kind: &str, resources: &[Value]) {
        let mut resources = self.localised(resources);
        for resource in resources.as_array_mut().unwrap() {
            resource["@type"] = format!("type.googleapis.com/{kind}").into();
        }
        let temporary = self.folder.path().join("new");
        fs::write(&temporary, json!({ "resources": resources }).to_string()).unwrap();
        fs::rename(temporary, self.path(name)).unwrap();
    }

    fn localised(&self, resources: &[Value]) -> Value {
        let mut resources = Value::from(resources.to_vec());
        self.localise(&mut resources, "");
        resources
    }

    /// `name` is the name of the innermost named message around `value`.
    fn localise(&self, value: &mut Value, name: &str) {
        if let Some(list) = value.as_array_mut() {
            list.iter_mut().for_each(|item| self.localise(item, name));
        }
        let Some(fields) = value.as_object_mut() else {
            return;
        };
        if fields.remove("ads").is_some() {
            fields.insert("pathConfigSource".into(), json!({ "path": self.path(name) }));
        }
        if self.ports == Ports::Any && fields.contains_key("trafficDirection") {
            fields["address"]["socketAddress"]["portValue"] = 0.into();
            for also in fields
                .get_mut("additionalAddresses")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                also["address"]["socketAddress"]["portValue"] = 0.into();
            }
        }
        let own = fields
            .get("routeConfigName")
            .or(fields.get("name"))
            .and_then(Value::as_str);
        let name = own.unwrap_or(name).to_owned();
        fields.values_mut().for_each(|field| self.localise(field, &name));
    }
}

/// Envoy warns when there is none.
fn connection_limit() -> Value {
    let config = "type.googleapis.com/\
                  envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";
    json!({ "resourceMonitors": [{
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typedConfig": { "@type": config, "maxActiveDownstreamConnections": 10_000 },
    }]})
}

fn type_of(resource: &Value, all: &Resources) -> &'static str {
    if all.endpoints.contains(resource) {
        "envoy.config.endpoint.v3.ClusterLoadAssignment"
    } else if all.routes.contains(resource) {
        "envoy.config.route.v3.RouteConfiguration"
    } else {
        "envoy.extensions.transport_sockets.tls.v3.Secret"
    }
}

/// What `envoy --mode validate` says about the resources, if anything.
pub(crate) fn validate(files: &Files) -> Result<(), String> {
    let mut command = Command::new(program());
    command
        .args(["--mode", "validate", "--log-level", "warning", "-c"])
        .arg(files.path("static"));
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && log.is_empty() {
        Ok(())
    } else {
        Err(log)
    }
}

/// A running Envoy. Killed when dropped.
pub(crate) struct Envoy {
    process: Child,
    folder: PathBuf,
    host: Option<Host>,
}

impl Envoy {
    /// Starts Envoy, on this host if one is named.
    pub(crate) fn start(files: &Files, host: Option<&Host>) -> Self {
        let folder = files.folder.path().to_owned();
        let mut command = match host {
            None => Command::new(program()),
            Some(host) => host.command(&program()),
        };
        let log = fs::File::create(folder.join("log")).unwrap();
        let process = command
            .args([
                "--use-dynamic-base-id",
                "--concurrency",
                "1",
                "--log-level",
                "warning",
            ])
            .args(["--drain-time-s", "1", "--file-flush-interval-msec", "50"])
            .arg("--admin-address-path")
            .arg(folder.join("admin"))
            .arg("-c")
            .arg(files.path("dynamic"))
            .stdin(Stdio::null())
            .stdout(fs::File::create(folder.join("access-log")).unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            process,
            folder,
            host: host.cloned(),
        }
    }

    /// Everything it logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Its access log.
    pub(crate) fn access_log(&self) -> String {
        fs::read_to_string(self.folder.join("access-log")).unwrap()
    }

    /// A page of the admin endpoint, once it is there.
    pub(crate) fn admin(&self, page: &str) -> Option<String> {
        let address: SocketAddr = read(&self.folder.join("admin"))?.parse().ok()?;
        let connect = move || TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).ok();
        let mut stream = self
            .host
            .as_ref()
            .map_or_else(connect, |host| host.run(connect))?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(
            stream,
            "GET {page} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| unchunked(body))
    }

    /// The value of a counter or gauge; zero if there is none of the name.
    pub(crate) fn statistic(&self, name: &str) -> u64 {
        self.statistics(|it| it == name)
            .into_iter()
            .map(|(_, value)| value)
            .sum()
    }

    /// The counters and gauges with such names.
    pub(crate) fn statistics(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, u64)> {
        let page = self.admin("/stats").unwrap_or_default();
        let lines = page.lines().filter_map(|line| line.rsplit_once(": "));
        let numbers = lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
        numbers.filter(|(name, _)| wanted(name)).collect()
    }

    /// Waits until this holds, at most ten seconds.
    pub(crate) fn wait_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds(self) {
            let ended = self.process.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "Envoy ended ({ended:?}) before {what}:\n{}",
                self.log()
            );
            assert!(
                Instant::now() < deadline,
                "no {what} within 10 s:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The text of a chunked body.
fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    text
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

impl Envoy {
    /// Kills it.
    pub(crate) fn stop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.stop();
    }
}
