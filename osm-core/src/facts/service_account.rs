//! ServiceAccounts: that they exist.

use std::sync::Arc;

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::{Diagnostic, Fact};

/// A ServiceAccount. Only its existence matters, so metadata-only watches are enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// Reads a ServiceAccount.
///
/// # Errors
/// None today.
pub fn from(object: &v1::ServiceAccount) -> Result<Fact, Diagnostic> {
    from_metadata(&object.metadata)
}

/// Reads a ServiceAccount's metadata.
///
/// # Errors
/// None today.
pub fn from_metadata(metadata: &ObjectMeta) -> Result<Fact, Diagnostic> {
    Ok(Fact::ServiceAccount(ServiceAccount {
        namespace: metadata.namespace.as_deref().unwrap_or("").into(),
        name: metadata.name.as_deref().unwrap_or("").into(),
    }))
}
