//! `osm-injector`.

use clap::Parser;
use osm_injector::{args::Args, run};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let log = osm_runtime::log::init(args.verbosity);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(run::run(args, log));
    // What is left (a connection that does not end, a call that hangs) does not keep the process.
    runtime.shutdown_background();
    result
}
