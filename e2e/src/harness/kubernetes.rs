//! A cluster's API, as the tests use it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, AttachParams, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::wait::eventually;
use crate::ground::MADE_BY;

/// Who writes, in the cluster's records.
const FIELD_MANAGER: &str = "osm-e2e";

/// How long an answer through a forwarded port may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Most bytes read from a program in a pod.
const MOST_OUTPUT: u64 = 8 << 20;

/// Access to one cluster.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
}

/// What a program in a pod printed.
#[derive(Debug)]
pub struct Executed {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Whether it exited with status zero.
    pub success: bool,
}

impl Kubernetes {
    /// Connects with the current context of a kubeconfig file; `kubectl` is the program to call.
    pub async fn connect(kubeconfig: &Path, kubectl: PathBuf) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig)
            .with_context(|| format!("cannot read {}: is the cluster up?", kubeconfig.display()))?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.read_timeout = Some(Duration::from_secs(180));
        // What the API server refuses is what a test wants to see.
        config.default_retry = false;
        let client = Client::try_from(config)?;
        client
            .apiserver_version()
            .await
            .context("the cluster does not answer")?;
        Ok(Self {
            client,
            kubeconfig: kubeconfig.to_owned(),
            kubectl,
        })
    }

    /// The client, for typed access.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The kubeconfig file that leads here.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs `kubectl`, as a user would; fails if it does.
    pub async fn kubectl(&self, arguments: &[&str], stdin: &str) -> Result<String> {
        let mut child = tokio::process::Command::new(&self.kubectl)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.kubectl.display()))?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(stdin.as_bytes()).await?;
        }
        let output = child.wait_with_output().await?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "kubectl {}: {stdout}{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(stdout)
    }

    /// Creates or changes objects (server-side apply), in order.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            self.apply_with(object, false).await?;
        }
        Ok(())
    }

    /// Asks what [`Kubernetes::apply`] would do, without doing it.
    pub async fn dry_run(&self, object: &Value) -> Result<Value> {
        self.apply_with(object, true).await
    }

    async fn apply_with(&self, object: &Value, dry_run: bool) -> Result<Value> {
        let api = self.dynamic(object)?;
        let name = field(object, "/metadata/name")?;
        let mut parameters = PatchParams::apply(FIELD_MANAGER).force();
        parameters.dry_run = dry_run;
        let answer = api
            .patch(name, &parameters, &Patch::Apply(object))
            .await
            .with_context(|| format!("cannot apply {} {name}", field(object, "/kind").unwrap_or("?")))?;
        Ok(serde_json::to_value(answer)?)
    }

    /// Creates an object that must not exist.
    pub async fn create(&self, object: &Value) -> Result<Value> {
        let api = self.dynamic(object)?;
        let name = field(object, "/metadata/name")?;
        let object = serde_json::from_value(object.clone())?;
        let made = api
            .create(&Default::default(), &object)
            .await
            .with_context(|| format!("cannot create {name}"))?;
        Ok(serde_json::to_value(made)?)
    }

    /// Reads an object; `None` if there is none.
    pub async fn get(&self, kind: &str, namespace: Option<&str>, name: &str) -> Result<Option<Value>> {
        let object = self.api(kind, namespace)?.get_opt(name).await?;
        object.map(serde_json::to_value).transpose().map_err(Into::into)
    }

    /// Reads the objects of a kind (`<apiVersion>/<Kind>`) that have the labels.
    pub async fn list(&self, kind: &str, namespace: Option<&str>, labels: &str) -> Result<Vec<Value>> {
        let list = self
            .api(kind, namespace)?
            .list(&ListParams::default().labels(labels))
            .await?;
        list.items
            .into_iter()
            .map(|object| Ok(serde_json::to_value(object)?))
            .collect()
    }

    /// Changes an object (RFC 7386 merge patch).
    pub async fn merge(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        change: &Value,
    ) -> Result<Value> {
        let changed = self
            .api(kind, namespace)?
            .patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await?;
        Ok(serde_json::to_value(changed)?)
    }

    /// Deletes an object; none is as good.
    pub async fn delete(&self, kind: &str, namespace: Option<&str>, name: &str) -> Result<()> {
        match self
            .api(kind, namespace)?
            .delete(name, &DeleteParams::default())
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result
                .map(drop)
                .with_context(|| format!("cannot delete {kind} {name}")),
        }
    }

    fn dynamic(&self, object: &Value) -> Result<Api<DynamicObject>> {
        let kind = format!("{}/{}", field(object, "/apiVersion")?, field(object, "/kind")?);
        self.api(
            &kind,
            object.pointer("/metadata/namespace").and_then(Value::as_str),
        )
    }

    fn api(&self, kind: &str, namespace: Option<&str>) -> Result<Api<DynamicObject>> {
        let (version, kind) = kind
            .rsplit_once('/')
            .with_context(|| format!("`{kind}` is not <apiVersion>/<Kind>"))?;
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Ok(match namespace {
            Some(namespace) => Api::namespaced_with(self.client(), namespace, &resource),
            None => Api::all_with(self.client(), &resource),
        })
    }

    /// The pods of a namespace.
    pub async fn pods(&self, namespace: &str, labels: &str) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        Ok(pods.list(&ListParams::default().labels(labels)).await?.items)
    }

    /// Waits until a pod is ready.
    pub async fn ready(&self, namespace: &str, pod: &str, at_most: Duration) -> Result<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        eventually(&format!("pod {namespace}/{pod}"), at_most, async || {
            let pod = pods.get(pod).await?;
            ensure!(is_ready(&pod), "it is not ready: {}", why_not_ready(&pod));
            Ok(pod)
        })
        .await
    }

    /// Runs a program in a container.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: &[&str],
    ) -> Result<Executed> {
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        let parameters = AttachParams::default()
            .container(container)
            .stdin(false)
            .stdout(true)
            .stderr(true);
        let mut process = pods
            .exec(pod, command.iter().copied(), &parameters)
            .await
            .with_context(|| format!("cannot run {command:?} in {namespace}/{pod}"))?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let streams = (process.stdout(), process.stderr());
        let (Some(out), Some(err)) = streams else {
            bail!("no output of {command:?} in {namespace}/{pod}")
        };
        let status = process.take_status();
        let (mut out, mut err) = (out.take(MOST_OUTPUT), err.take(MOST_OUTPUT));
        tokio::try_join!(out.read_to_end(&mut stdout), err.read_to_end(&mut stderr))?;
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        Ok(Executed {
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            success: status.is_some_and(|status| status.status.as_deref() == Some("Success")),
        })
    }

    /// What a pod answers to a GET on a port of its loopback.
    pub async fn fetch(&self, namespace: &str, pod: &str, port: u16, path: &str) -> Result<String> {
        let exchange = async {
            let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
            let mut forward = pods.portforward(pod, &[port]).await?;
            let stream = forward.take_stream(port).context("the port is not forwarded")?;
            let (mut requests, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let driver = tokio::spawn(connection);
            let request = http::Request::get(path)
                .header("host", "localhost")
                .body(Empty::<Bytes>::new())?;
            let response = requests.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            driver.abort();
            forward.abort();
            ensure!(status.is_success(), "status {status}");
            Ok(String::from_utf8_lossy(&body).into_owned())
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer,
            Err(_) => bail!("port {port} of {namespace}/{pod} does not answer in {PATIENCE:?}"),
        }
    }

    /// What a container wrote; of one that restarted, what it wrote before with `previous`.
    pub async fn logs(&self, namespace: &str, pod: &str, container: &str, previous: bool) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        let parameters = LogParams {
            container: Some(container.to_owned()),
            previous,
            timestamps: true,
            ..LogParams::default()
        };
        Ok(pods.logs(pod, &parameters).await?)
    }

    /// Creates a namespace with labels and annotations, and the label of what is made here.
    pub async fn create_namespace(&self, name: &str, mut labels: Value, annotations: Value) -> Result<()> {
        labels[MADE_BY] = json!("osm-e2e");
        self.apply(&[json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": labels, "annotations": annotations },
        })])
        .await
    }

    /// Deletes namespaces and waits until they are gone.
    pub async fn delete_namespaces(&self, names: &[String], at_most: Duration) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client());
        for name in names {
            self.delete("v1/Namespace", None, name).await?;
        }
        eventually("namespaces to go", at_most, async || {
            for name in names {
                ensure!(
                    namespaces.get_opt(name).await?.is_none(),
                    "namespace {name} is still there"
                );
            }
            Ok(())
        })
        .await
    }
}

/// A string in an object.
///
/// # Errors
///
/// When there is none at the pointer.
pub fn field<'a>(object: &'a Value, pointer: &str) -> Result<&'a str> {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("no string at {pointer}"))
}

/// Whether a pod is ready, and not on its way out.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What a pod's containers are waiting for.
pub fn why_not_ready(pod: &Pod) -> String {
    let Some(status) = &pod.status else {
        return "it has no status".to_owned();
    };
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let mut reasons: Vec<String> = containers
        .filter(|container| !container.ready)
        .filter_map(|container| {
            let state = container.state.as_ref()?;
            let text = match (&state.waiting, &state.terminated) {
                (Some(waiting), _) => format!(
                    "{} {}",
                    waiting.reason.as_deref().unwrap_or("waiting"),
                    waiting.message.as_deref().unwrap_or_default()
                ),
                (None, Some(ended)) if ended.exit_code == 0 => return None,
                (None, Some(ended)) => format!("ended with status {}", ended.exit_code),
                (None, None) => "running, not ready".to_owned(),
            };
            Some(format!("{}: {}", container.name, text.trim()))
        })
        .collect();
    if reasons.is_empty() {
        reasons.push(status.phase.clone().unwrap_or_else(|| "no phase".to_owned()));
    }
    reasons.join("; ")
}
