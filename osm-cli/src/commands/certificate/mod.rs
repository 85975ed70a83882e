//! `osm certificate`: the roots of a mesh, and their rotation.

mod rotate;
mod state;
mod status;

use anyhow::Result;
use clap::Subcommand;

use crate::Global;

#[derive(Debug, Subcommand)]
pub(crate) enum CertificateCommand {
    /// Replaces the root certificate, without a restart and without a failed request
    Rotate(rotate::Rotate),
    /// Shows the roots, who trusts them and what they have signed
    Status(status::Status),
}

impl CertificateCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        match self {
            CertificateCommand::Rotate(command) => command.run(global).await,
            CertificateCommand::Status(command) => command.run(global).await,
        }
    }
}
