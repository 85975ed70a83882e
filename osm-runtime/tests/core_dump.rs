//! In a process of its own, since the logger, the panic hook and the limits are the process's.
#![allow(clippy::unwrap_used)]

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit},
};
use osm_runtime::component;

#[test]
fn keys_are_in_no_core_dump() {
    let verbosity = "info".parse().unwrap();
    let found = std::cell::Cell::new(None);
    component::execute(verbosity, |_| async {
        found.set(Some((getrlimit(Resource::RLIMIT_CORE), prctl::get_dumpable())));
        Ok::<(), io::Error>(())
    })
    .unwrap();
    assert_eq!(found.take(), Some((Ok((0, 0)), Ok(false))));
}
