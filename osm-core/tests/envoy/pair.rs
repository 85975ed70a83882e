//! Two sidecars and an application on a wire: what `traffic` sends requests through.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use osm_core::ir::ServiceCertificate;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};

use crate::{
    cases::{Sidecar, principal},
    envoy::{Envoy, Files, Ports},
    host::{SERVICE, Wire},
    resources::{Credentials, Resources},
};

/// The mesh's CA.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "osm-ca");
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, common_name: &str, names: Vec<SanType>, uses: &[ExtendedKeyUsagePurpose]) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters
            .distinguished_name
            .push(DnType::CommonName, common_name);
        parameters.subject_alt_names = names;
        parameters.extended_key_usages = uses.to_vec();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        Credentials {
            roots: self.0.pem().into(),
            certificate: ServiceCertificate {
                chain: certificate.pem().into(),
                key: key.serialize_pem().into(),
            },
        }
    }

    /// A workload's certificate.
    pub(crate) fn workload(&self, account: &str) -> Credentials {
        let name = principal(account);
        let names = vec![SanType::DnsName(name.clone().try_into().unwrap())];
        let uses = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.sign(&name, names, &uses)
    }

    /// A certificate that a proxy authenticates to the control plane with.
    pub(crate) fn proxy(&self, account: &str) -> Credentials {
        let uuid = "6a1e9e6b-0000-4000-8000-00000000000f";
        let uri = format!("spiffe://cluster.local/{uuid}/sidecar/{account}/shop");
        let names = vec![SanType::URI(uri.try_into().unwrap())];
        let name = format!("{uuid}.sidecar.{}", principal(account));
        self.sign(&name, names, &[ExtendedKeyUsagePurpose::ClientAuth])
    }
}

/// A client with its sidecar, servers with theirs.
pub(crate) struct Pair {
    pub(crate) client: Envoy,
    client_files: Files,
    pub(crate) servers: Vec<Envoy>,
    _server_files: Files,
    pub(crate) wire: Wire,
}

impl Pair {
    pub(crate) fn new(client: (&Sidecar, &Credentials), server: (&Sidecar, &Credentials)) -> Self {
        Self::with_servers(1, client, server)
    }

    /// Several servers, all alike.
    pub(crate) fn with_servers(
        servers: u8,
        client: (&Sidecar, &Credentials),
        server: (&Sidecar, &Credentials),
    ) -> Self {
        let wire = Wire::new(servers);
        let server_files = Files::new(&Resources::of(server.0, server.1), Ports::Kept);
        let servers = wire
            .servers
            .iter()
            .map(|host| started(&server_files, host))
            .collect();
        let client_files = Files::new(&Resources::of(client.0, client.1), Ports::Kept);
        let client = started(&client_files, &wire.client);
        Self {
            client,
            client_files,
            servers,
            _server_files: server_files,
            wire,
        }
    }

    /// Replaces the client's sidecar: another identity, for example.
    pub(crate) fn replace_client(&mut self, client: &Sidecar, credentials: &Credentials) {
        self.replace_client_with(&Resources::of(client, credentials));
    }

    /// Replaces the client's sidecar by one with these resources, whoever made them.
    pub(crate) fn replace_client_with(&mut self, resources: &Resources) {
        self.client_files = Files::new(resources, Ports::Kept);
        self.client.stop();
        self.client = started(&self.client_files, &self.wire.client);
    }

    /// Changes the client's sidecar while it runs.
    pub(crate) fn update_client(&mut self, client: &Sidecar, credentials: &Credentials) {
        let updates = |envoy: &Envoy| envoy.statistic("listener_manager.lds.update_success");
        let before = updates(&self.client);
        self.client_files.update(&Resources::of(client, credentials));
        self.client.wait_until("update", |envoy| updates(envoy) > before);
    }

    /// Replaces the clusters of the client's sidecar while it runs, and gives Envoy the time to let the old ones go.
    pub(crate) fn replace_clusters(&mut self, client: &Sidecar, credentials: &Credentials) {
        let replaced = |envoy: &Envoy| envoy.statistic("cluster_manager.cluster_modified");
        let before = replaced(&self.client);
        self.client_files.update(&Resources::of(client, credentials));
        self.client.wait_until("clusters", |envoy| {
            replaced(envoy) > before && envoy.statistic("cluster_manager.warming_clusters") == 0
        });
        thread::sleep(Duration::from_secs(3));
    }

    /// An application at this port of every server's loopback.
    pub(crate) fn application(&self, port: u16, serve: fn(TcpStream)) -> Application {
        let accepted = Arc::new(AtomicUsize::new(0));
        for host in &self.wire.servers {
            let listener = host.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
            let counter = accepted.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    counter.fetch_add(1, Ordering::Relaxed);
                    thread::spawn(move || serve(stream.unwrap()));
                }
            });
        }
        Application { accepted }
    }

    /// A connection from the client's application to this port of the service.
    pub(crate) fn connect(&self, port: u16) -> TcpStream {
        self.connect_to(SERVICE, port)
    }

    /// A connection from the client's host to this address.
    pub(crate) fn connect_to(&self, address: IpAddr, port: u16) -> TcpStream {
        let stream = self
            .wire
            .client
            .run(|| TcpStream::connect((address, port)).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// The status and text of the answer to a request (`GET /path` and headers) that the application sends.
    pub(crate) fn request(&self, port: u16, request: &str) -> (u16, String) {
        let mut stream = self.connect(port);
        let (line, headers) = request.split_once('\n').unwrap_or((request, ""));
        let mut lines = vec![format!("{line} HTTP/1.1")];
        lines.extend(headers.lines().map(|header| header.trim().to_owned()));
        if !headers.to_lowercase().contains("host:") {
            lines.push("host: bookstore.shop".to_owned());
        }
        lines.push("connection: close\r\n\r\n".to_owned());
        stream.write_all(lines.join("\r\n").as_bytes()).unwrap();
        let answer = everything(&mut stream);
        let status = answer.get(9..12).and_then(|status| status.parse().ok());
        (
            status.unwrap_or_else(|| panic!("{request}: {answer:?}\n{}", self.client.access_log())),
            answer,
        )
    }

    /// The status alone.
    pub(crate) fn status(&self, port: u16, request: &str) -> u16 {
        self.request(port, request).0
    }
}

fn started(files: &Files, host: &crate::host::Host) -> Envoy {
    let mut envoy = Envoy::start(files, Some(host));
    envoy.wait_until("listening", |envoy| {
        let listeners = envoy.admin("/listeners").unwrap_or_default();
        !listeners.is_empty()
            && envoy.statistic("listener_manager.total_listeners_warming") == 0
            && envoy
                .admin("/ready")
                .is_some_and(|answer| answer.starts_with("LIVE"))
    });
    envoy
}

/// A server program and how many connections reached it.
pub(crate) struct Application {
    accepted: Arc<AtomicUsize>,
}

impl Application {
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Reads to the end. A reset is an end too.
pub(crate) fn everything(stream: &mut TcpStream) -> String {
    let mut bytes = vec![];
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("no end of the stream after {bytes:?}: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A client that takes the pods of every service to run as `account`.
pub(crate) fn trusting(mut client: Sidecar, account: &str) -> Sidecar {
    for upstream in &mut client.upstreams {
        upstream.servers = vec![principal(account)];
    }
    client
}
