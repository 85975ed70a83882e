//! Labels the mesh reads and writes.

/// On a namespace: the name of the mesh that its pods belong to.
pub const MONITORED_BY: &str = "openservicemesh.io/monitored-by";
/// On a namespace: the mesh's webhooks never touch it.
pub const IGNORE: &str = "openservicemesh.io/ignore";
/// On a pod: the uuid of its sidecar, as in the sidecar's certificate.
pub const PROXY_UUID: &str = "osm-proxy-uuid";
/// On a Deployment of the control plane: the mesh it belongs to.
pub const MESH_NAME: &str = "meshName";
/// On the controller's Deployment: whether another mesh may be installed beside it.
pub const ENFORCE_SINGLE_MESH: &str = "enforceSingleMesh";
/// On every object of the mesh: [`APP_NAME_VALUE`].
pub const APP_NAME: &str = "app.kubernetes.io/name";
/// The value of [`APP_NAME`].
pub const APP_NAME_VALUE: &str = "openservicemesh.io";
/// On every object of the mesh: the mesh's name.
pub const APP_INSTANCE: &str = "app.kubernetes.io/instance";
/// On every object of the mesh: the version that wrote it.
pub const APP_VERSION: &str = "app.kubernetes.io/version";
/// On an object that `osm install` only ever writes in a dry run: which webhook is to be asked about it.
pub const PROBE: &str = "openservicemesh.io/install-probe";
/// On pods and Deployments of the control plane: the component's name.
pub const APP: &str = "app";
