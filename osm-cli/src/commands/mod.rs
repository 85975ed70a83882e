//! The commands, one file each.

pub(crate) mod certificate;
pub(crate) mod check;
pub(crate) mod completion;
pub(crate) mod confirm;
pub(crate) mod env;
pub(crate) mod install;
pub(crate) mod mesh;
pub(crate) mod metrics;
pub(crate) mod namespace;
pub(crate) mod plan;
pub(crate) mod proxy;
pub(crate) mod proxy_status;
pub(crate) mod uninstall;
pub(crate) mod version;
