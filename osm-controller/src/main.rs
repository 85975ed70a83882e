//! `osm-controller`.

use clap::Parser;
use osm_controller::{args::Args, run};
use osm_runtime::component;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    component::execute(args.component.verbosity, |log| run::run(args, log))
}
