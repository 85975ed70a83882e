//! A discovery client made by hand.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use osm_core::{certificate::TrustBundle, resource::ResourceType};
use osm_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use osm_runtime::{issuer::Leaf, tls};
use prost::Message;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{Status, Streaming, body::Body, client::Grpc, codegen::http};
use tonic_prost::ProstCodec;

const SERVICE: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService";

/// TLS as a sidecar does it: the server's name is pinned.
pub(crate) async fn connect(
    address: SocketAddr,
    roots: &TrustBundle,
    leaf: Option<&Leaf>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut store = RootCertStore::empty();
    for root in roots.roots() {
        store.add(root.der().to_vec().into()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store);
    let mut config = match leaf {
        Some(leaf) => {
            let chain = leaf
                .chain_der()
                .iter()
                .cloned()
                .map(CertificateDer::from)
                .collect();
            config.with_client_auth_cert(chain, leaf.key_der()).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("ads.cluster.local").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// An HTTP/2 connection as tonic wants it.
#[derive(Clone)]
pub(crate) struct Channel(http2::SendRequest<Body>);

impl Channel {
    pub(crate) async fn open(
        address: SocketAddr,
        roots: &TrustBundle,
        leaf: Option<&Leaf>,
    ) -> Result<Self, String> {
        let stream = connect(address, roots, leaf)
            .await
            .map_err(|error| error.to_string())?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A stream of requests and responses.
pub(crate) struct Conversation<Q, R> {
    pub(crate) requests: mpsc::Sender<Q>,
    responses: Streaming<R>,
}

pub(crate) type Delta = Conversation<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;
pub(crate) type State = Conversation<DiscoveryRequest, DiscoveryResponse>;

pub(crate) async fn delta(channel: &Channel) -> Result<Delta, Status> {
    call(channel, "DeltaAggregatedResources").await
}

pub(crate) async fn state(channel: &Channel) -> Result<State, Status> {
    call(channel, "StreamAggregatedResources").await
}

pub(crate) async fn call<Q, R>(channel: &Channel, method: &str) -> Result<Conversation<Q, R>, Status>
where
    Q: Message + Default + 'static,
    R: Message + Default + 'static,
{
    let mut grpc = Grpc::with_origin(channel.clone(), "https://ads.cluster.local".parse().unwrap())
        .max_decoding_message_size(64 << 20);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let (requests, queued) = mpsc::channel(1_024);
    let stream = tokio_stream::wrappers::ReceiverStream::new(queued);
    let path = format!("{SERVICE}/{method}").parse().unwrap();
    let answer = grpc.streaming(tonic::Request::new(stream), path, ProstCodec::<Q, R>::default());
    let answer = tokio::time::timeout(Duration::from_secs(20), answer)
        .await
        .expect("an answer in time")?;
    Ok(Conversation {
        requests,
        responses: answer.into_inner(),
    })
}

impl<Q, R: Message + Default + 'static> Conversation<Q, R> {
    /// The next response; `None` when the stream ended well.
    pub(crate) async fn next(&mut self) -> Result<Option<R>, Status> {
        tokio::time::timeout(Duration::from_secs(20), self.responses.message())
            .await
            .expect("a response in time")
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.responses.message())
            .await
            .is_err()
    }
}

impl Delta {
    pub(crate) async fn subscribe(&self, kind: ResourceType, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn ack(&self, response: &DeltaDiscoveryResponse) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The names in the next response, which is accepted.
    pub(crate) async fn take(&mut self) -> Vec<String> {
        let response = self.next().await.unwrap().expect("a response");
        self.ack(&response).await;
        let added = response
            .resources
            .iter()
            .map(|resource| format!("+{}", resource.name));
        added
            .chain(response.removed_resources.iter().map(|name| format!("-{name}")))
            .collect()
    }
}
