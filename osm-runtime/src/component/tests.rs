//! A component on a loopback address of its own, and a kubeconfig of a cluster that does not answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use axum::{Router, routing::get};
use clap::Parser;
use osm_core::api::ports;
use tokio::net::TcpListener;

use super::*;

const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: nowhere
contexts: [{name: nowhere, context: {cluster: nowhere, user: nobody}}]
clusters: [{name: nowhere, cluster: {server: 'http://127.0.0.1:9'}}]
users: [{name: nobody, user: {}}]
";

#[derive(Parser)]
struct Binary {
    #[command(flatten)]
    component: Flags,
}

/// The flags of a component at `address`, which finds its cluster in `kubeconfig`.
fn flags(address: &str, kubeconfig: &str) -> Flags {
    let arguments = [
        "binary",
        "--mesh-name=osm",
        "--osm-namespace=osm-system",
        "--shutdown-delay=0s",
        &format!("--bind-address={address}"),
        &format!("--kubeconfig={kubeconfig}"),
    ];
    Binary::try_parse_from(arguments).unwrap().component
}

/// What the admin endpoint answers: its status and body.
fn ask(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let address = SocketAddr::new(address.parse().unwrap(), ports::ADMIN);
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}

/// A component that has started at `address`. The file of its kubeconfig is gone again.
async fn started(address: &str) -> Component {
    let file = std::env::temp_dir().join(format!("osm-component-{}-{address}", std::process::id()));
    std::fs::write(&file, KUBECONFIG).unwrap();
    let flags = flags(address, file.to_str().unwrap());
    let start = Start::new(
        "osm-test",
        "osm-test-0",
        &flags,
        Router::new().route("/more", get(async || "more")),
    );
    let component = start.unwrap().connect().await;
    std::fs::remove_file(&file).unwrap();
    component.unwrap()
}

#[tokio::test]
async fn probes_come_first_then_listeners_then_the_cluster() {
    let address = "127.0.91.1";
    let flags = flags(address, "/nonexistent");
    let taken = TcpListener::bind((address, 15_129)).await.unwrap();
    let start = Start::new("osm-test", "osm-test-0", &flags, Router::new()).unwrap();
    let (status, body) = ask(address, "/health/ready").unwrap();
    assert_eq!(
        (status, body.as_str()),
        (503, "listeners: there is no root certificate yet\n"),
        "answered before there is a way to a cluster"
    );
    assert_eq!(ask(address, "/health/alive").unwrap().0, 200);

    let refused = start.listen(15_129, "tests").await.unwrap_err();
    assert_eq!(refused.to_string(), "cannot listen on 127.0.91.1:15129 (tests)");
    drop(taken);
    start.listen(15_129, "tests").await.unwrap();
    let twice = Start::new("osm-test", "osm-test-0", &flags, Router::new());
    let refused = twice.err().unwrap().to_string();
    assert!(refused.contains("9091 (health and metrics)"), "{refused}");

    assert!(matches!(start.connect().await, Err(StartError::Client(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_ready_when_it_serves_and_leaves_when_that_fails() {
    let address = "127.0.91.2";
    let component = started(address).await;
    assert_eq!(ask(address, "/more").unwrap(), (200, "more".to_owned()));
    let (_, metrics) = ask(address, "/metrics").unwrap();
    assert!(metrics.contains("osm_version_info{version=\"v"), "{metrics}");
    let (_, status) = ask(address, "/status").unwrap();
    assert!(status.contains("osm-test-0"), "{status}");

    let (fail, failing) = tokio::sync::oneshot::channel::<()>();
    let serving = component.clone();
    let leaving = component.run(async move {
        serving.serving();
        let _ = failing.await;
        Err("as asked")
    });
    let meanwhile = async {
        while ask(address, "/health/ready").unwrap().0 != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        fail.send(()).unwrap();
    };
    let both = async { tokio::join!(leaving, meanwhile).0 };
    let long = Duration::from_secs(30);
    tokio::time::timeout(long, both).await.expect("leaves").unwrap();
    assert!(
        ask(address, "/health/alive").is_err(),
        "the admin endpoint is gone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serving_on_ends_nothing_and_a_panic_does() {
    let component = started("127.0.91.3").await;
    let done = component.clone().run(async { Ok::<(), String>(()) });
    let short = Duration::from_millis(300);
    assert!(tokio::time::timeout(short, done).await.is_err(), "it goes on");

    async fn panics() -> Result<(), String> {
        panic!("as asked")
    }
    let leaving = component.run(panics());
    let long = Duration::from_secs(30);
    tokio::time::timeout(long, leaving)
        .await
        .expect("leaves")
        .unwrap();
}

#[test]
fn what_belongs_together_is_read_together() {
    let arguments = |more: &[&'static str]| {
        let required = ["binary", "--mesh-name=shop", "--osm-namespace=mesh"];
        Binary::try_parse_from(required.iter().chain(more)).map(|binary| binary.component)
    };
    let flags = arguments(&["--pod-ip=fd00::7", "--osm-version=v3"]).unwrap();
    assert_eq!(flags.address().to_string(), "::");
    let setting = flags.setting().unwrap();
    assert_eq!(setting.home.namespace, "mesh");
    assert_eq!(setting.home.configured, setting.configured.source());
    assert_eq!(setting.labels["app.kubernetes.io/instance"], "shop");
    assert_eq!(setting.labels["app.kubernetes.io/version"], "v3");
    assert_eq!(
        arguments(&["--bind-address=10.0.0.1"])
            .unwrap()
            .address()
            .to_string(),
        "10.0.0.1"
    );
    let vault = arguments(&["--certificate-manager=vault"]).unwrap();
    assert!(vault.setting().is_err(), "there is no token");
    assert!(arguments(&["--mesh-name="]).is_err());
}
