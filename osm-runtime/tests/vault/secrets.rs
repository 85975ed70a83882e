//! An API server that has Secrets and nothing else.

use std::{collections::BTreeMap, sync::Arc};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The Secrets, by name, in one namespace.
#[derive(Clone, Default)]
pub(super) struct Secrets(Arc<Mutex<BTreeMap<String, Value>>>);

impl Secrets {
    pub(super) fn client(&self) -> kube::Client {
        let store = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let store = store.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let (status, answer) = if parts.method == Method::POST {
                    store.create(serde_json::from_slice(&body)?)
                } else {
                    store.read(parts.uri.path().rsplit('/').next().unwrap_or_default())
                };
                let response = Response::builder().status(status);
                Ok::<_, tower::BoxError>(response.body(Body::from(answer.to_string().into_bytes()))?)
            }
        });
        kube::Client::new(service, "osm-system")
    }

    /// What is stored under a name.
    pub(super) fn get(&self, name: &str) -> Option<Value> {
        self.0.lock().get(name).cloned()
    }

    /// Stores a Secret with one key.
    pub(super) fn put(&self, name: &str, key: &str, text: &str) {
        use base64::Engine as _;
        let value = base64::engine::general_purpose::STANDARD.encode(text);
        let secret = json!({"metadata": {"name": name}, "data": {key: value}});
        self.0.lock().insert(name.to_owned(), secret);
    }

    fn create(&self, secret: Value) -> (u16, Value) {
        let name = secret["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut all = self.0.lock();
        if all.contains_key(&name) {
            return (409, status("AlreadyExists", 409));
        }
        all.insert(name, secret.clone());
        (201, secret)
    }

    fn read(&self, name: &str) -> (u16, Value) {
        self.get(name)
            .map_or_else(|| (404, status("NotFound", 404)), |secret| (200, secret))
    }
}

fn status(reason: &str, code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": ""})
}
