//! Namespaces: which of them are in the mesh.

use std::sync::Arc;

use k8s_openapi::api::core::v1;

use super::{Diagnostic, Fact};
use crate::api::labels;

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// The mesh it belongs to, by its label.
    pub monitored_by: Option<Arc<str>>,
    /// Whether it carries the label that keeps every mesh away; the value does not matter, as in webhook selectors.
    pub ignored: bool,
}

/// Reads a Namespace.
///
/// # Errors
/// None today.
pub fn from(object: &v1::Namespace) -> Result<Fact, Diagnostic> {
    let labels = object.metadata.labels.as_ref();
    let label = |name| labels.and_then(|labels| labels.get(name));
    Ok(Fact::Namespace(Namespace {
        name: object.metadata.name.as_deref().unwrap_or("").into(),
        monitored_by: label(labels::MONITORED_BY).map(|mesh| mesh.as_str().into()),
        ignored: label(labels::IGNORE).is_some(),
    }))
}
