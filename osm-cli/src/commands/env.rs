//! `osm env`.

use anyhow::Result;

use crate::Global;

/// Prints the settings in force, as the file they may be written in.
pub(crate) fn run(global: &Global) -> Result<()> {
    let mut config = global.config.clone();
    global.namespace().clone_into(&mut config.install.namespace);
    print!("---\n{}", serde_saphyr::to_string(&config)?);
    Ok(())
}
