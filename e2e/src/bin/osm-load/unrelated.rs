//! Writes that mean nothing to the mesh: annotations, and status of no concern, at a rate that an API server alone cannot take.
//!
//! One such write of each object goes through the API; what etcd then holds is put there again with another number each time
//! (see [`Etcd`]).

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use crate::{
    api::Write,
    etcd::{Etcd, overwrite},
    measure::Measure,
    paced::paced,
    population::{name, namespace, pod_name, slice_path},
    world::World,
};

/// Objects that are written again and again.
const OBJECTS: usize = 1_000;
/// Writes under way at a time; fewer than objects, so that those of one object come one after another.
const CONCURRENT: usize = 32;

/// An object as it is stored, with a number in it that concerns nobody.
struct Numbered {
    key: String,
    stored: Vec<u8>,
}

/// A number as text, always of the same length.
fn text(number: u64) -> String {
    format!("of-no-concern-{number:010}")
}

impl Numbered {
    /// Writes the first number through the API: of four objects, one is a Service, one an EndpointSlice, two are pods.
    async fn record(world: &World, etcd: &Etcd, number: usize) -> Result<Self> {
        let size = world.size;
        let proxy = number * 7 % size.proxies;
        let service = size.service_of(proxy);
        let slice = slice_path(service);
        let (namespace, service) = (namespace(service), name(service));
        let first = text(0);
        let note = json!({"metadata": {"annotations": {"load": first}}});
        let (key, path, change): (String, String, Value) = match number % 4 {
            0 => (
                format!("services/specs/{namespace}/{service}"),
                format!("/api/v1/namespaces/{namespace}/services/{service}"),
                note,
            ),
            1 => (format!("endpointslices/{namespace}/{service}"), slice, note),
            _ => {
                let pod = pod_name(proxy);
                (
                    format!("pods/{namespace}/{pod}"),
                    format!("/api/v1/namespaces/{namespace}/pods/{pod}/status"),
                    json!({"status": {"message": first}}),
                )
            }
        };
        world.api.write(&Write::merge(path, &change)).await?;
        let stored = etcd.get(&key).await?;
        Ok(Self { key, stored })
    }

    async fn write(&self, etcd: &Etcd, number: u64) -> Result<()> {
        let mut bytes = self.stored.clone();
        overwrite(&mut bytes, text(0).as_bytes(), text(number).as_bytes());
        etcd.put(&self.key, bytes).await
    }
}

impl Measure<'_> {
    /// Writes for so many seconds, so often a second.
    pub(crate) async fn unrelated(&mut self, seconds: u64, rate: u64) -> Result<()> {
        let etcd = self.world.api.etcd();
        let world = &*self.world;
        let objects: Vec<Numbered> = stream::iter(0..OBJECTS)
            .map(|number| Numbered::record(world, &etcd, number))
            .buffered(CONCURRENT)
            .try_collect()
            .await?;
        self.settle(self.fleet.tally().now(), 0).await?;

        let before = self.begin().await?;
        let begun = Instant::now();
        let gap = Duration::from_secs(1).div_f64(rate.max(1) as f64);
        let write = |number: u64| objects[number as usize % OBJECTS].write(&etcd, number + 1);
        paced(seconds * rate, gap, write)
            .buffered(CONCURRENT)
            .try_collect::<()>()
            .await?;
        let written = (seconds * rate) as f64;
        let achieved = written / begun.elapsed().as_secs_f64();
        let mut phase = self.finish("unrelated writes", &before, 1).await?;
        phase.proxies = self.fleet.tally().answered_since(before.moment).len();
        phase.expected = Some(0);
        phase.note = format!(
            "{achieved:.0} writes/s of {rate}; {:.0} µs of CPU each beyond idling",
            phase.work() * 1e6 / written.max(1.0)
        );
        self.keep(phase);
        Ok(())
    }
}
