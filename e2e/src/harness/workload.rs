//! Pods and Services of the tests, all of the one program `osm-demo`.

use serde_json::{Value, json};

use super::peer::CONTAINER;

/// A pod to be, with a service account of the same name.
#[derive(Clone)]
pub struct Workload {
    /// Name of the pod, its `app` label and its service account.
    pub name: String,
    arguments: Vec<String>,
    change: Value,
}

impl Workload {
    /// A pod that waits for orders.
    pub fn client(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            arguments: vec!["serve".to_owned()],
            change: json!({}),
        }
    }

    /// A pod that serves: options of `osm-demo serve`, as `--http 8080 --greet 9200`.
    pub fn server(name: &str, options: &str) -> Self {
        let mut workload = Self::client(name);
        workload
            .arguments
            .extend(options.split_whitespace().map(str::to_owned));
        workload
    }

    /// Changes the pod as written (RFC 7386 merge patch; lists are replaced).
    pub fn with(mut self, change: Value) -> Self {
        merge(&mut self.change, change);
        self
    }

    /// Changes its only container.
    pub fn with_container(mut self, change: Value) -> Self {
        let mut containers = self.change["container"].take();
        if containers.is_null() {
            containers = json!({});
        }
        merge(&mut containers, change);
        self.change["container"] = containers;
        self
    }

    /// Sets an annotation.
    pub fn annotated(self, name: &str, value: &str) -> Self {
        self.with(json!({ "metadata": { "annotations": { name: value } } }))
    }

    /// Sets a label.
    pub fn labelled(self, name: &str, value: &str) -> Self {
        self.with(json!({ "metadata": { "labels": { name: value } } }))
    }

    /// Runs it as another service account.
    pub fn account(self, name: &str) -> Self {
        self.with(json!({ "spec": { "serviceAccountName": name } }))
    }

    /// The service account.
    pub fn service_account(&self, namespace: &str) -> Value {
        let name = self
            .change
            .pointer("/spec/serviceAccountName")
            .and_then(Value::as_str)
            .unwrap_or(&self.name);
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": namespace } })
    }

    /// The pod.
    pub fn pod(&self, namespace: &str, image: &str) -> Value {
        let mut command = vec!["osm-demo".to_owned()];
        command.extend(self.arguments.iter().cloned());
        let mut container = json!({
            "name": CONTAINER, "image": image, "imagePullPolicy": "IfNotPresent", "command": command,
        });
        let mut change = self.change.clone();
        if let Some(container_change) = change
            .as_object_mut()
            .and_then(|change| change.remove("container"))
        {
            merge(&mut container, container_change);
        }
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": self.name, "namespace": namespace, "labels": { "app": self.name } },
            "spec": {
                "serviceAccountName": self.name,
                "terminationGracePeriodSeconds": 1,
                "containers": [container],
            },
        });
        merge(&mut pod, change);
        pod
    }

    /// A StatefulSet of such pods, governed by the Service of the same name.
    pub fn stateful_set(&self, namespace: &str, image: &str, replicas: u32) -> Value {
        let pod = self.pod(namespace, image);
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": { "name": self.name, "namespace": namespace },
            "spec": {
                "replicas": replicas,
                "serviceName": self.name,
                "podManagementPolicy": "Parallel",
                "selector": { "matchLabels": { "app": self.name } },
                "template": { "metadata": { "labels": pod["metadata"]["labels"] }, "spec": pod["spec"] },
            },
        })
    }
}

/// A Service of the pods with label `app=<app>`; `ports` as in its spec.
pub fn service(namespace: &str, name: &str, app: &str, ports: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "selector": { "app": app }, "ports": ports },
    })
}

/// RFC 7386.
pub fn merge(target: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *target = change;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    if let Value::Object(target) = target {
        for (name, value) in change {
            if value.is_null() {
                target.remove(&name);
            } else {
                merge(target.entry(name).or_insert(Value::Null), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_reach_the_pod_and_its_container() {
        let pod = Workload::server("web", "--http 8080")
            .annotated("a", "b")
            .account("other")
            .with_container(json!({ "ports": [{ "containerPort": 8080 }] }))
            .pod("ns", "image:tag");
        assert_eq!(pod["metadata"]["annotations"]["a"], "b");
        assert_eq!(pod["metadata"]["labels"]["app"], "web");
        assert_eq!(pod["spec"]["serviceAccountName"], "other");
        assert_eq!(
            pod["spec"]["containers"][0]["command"],
            json!(["osm-demo", "serve", "--http", "8080"])
        );
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["containerPort"], 8080);
        assert!(pod.get("container").is_none());
    }
}
