//! A million changes: pods are replaced by ones never seen before, faster than an API server can be told to.
//!
//! Each service gets one more pod. Its life is written through the API once, what etcd then holds is kept, and is put there
//! again and again with another name, uid and proxy uuid each time: the API server reads it, and tells the controller, as
//! after a write of its own, at a tenth of the cost. Invariant: the fleet's own pods stay as they are.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api as Objects;
use osm_core::api::labels;
use serde_json::json;
use uuid::Uuid;

use crate::{
    api::Write,
    etcd::{Etcd, overwrite},
    measure::Measure,
    paced::paced,
    population::{Object, address, name, namespace, pod, slice_path},
    world::World,
};

/// Events of one replacement: not ready, gone, made, running, ready.
const EVENTS: u64 = 5;
/// Replacements under way at a time; fewer than services, so that those of one service come one after another.
const CONCURRENT: usize = 16;
/// How often memory is read.
const SAMPLING: Duration = Duration::from_secs(2);
/// The sample that is shown to whoever waits: each so many.
const SHOWN: usize = 15;

/// The server's memory at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Events so far.
    events: u64,
    /// Resident memory, MB.
    resident: f64,
}

/// The texts that tell one pod from another; always of the same lengths.
struct Texts {
    name: String,
    uid: String,
    proxy: String,
}

/// The place of the one more pod of a service, and what is stored in the course of a pod's life there.
struct Place {
    namespace: String,
    service: String,
    first: Texts,
    absent: Vec<u8>,
    pending: Vec<u8>,
    running: Vec<u8>,
    ready: Vec<u8>,
}

impl Texts {
    /// Those of the pod of that number.
    fn of(number: u64) -> Self {
        // The version and variant bits are those of a random uuid.
        let uuid = |kind: u128| Uuid::from_u128(kind << 96 | 0x4000_8000_0000_0000_0000 | u128::from(number));
        Self {
            name: pod_name(number),
            uid: uuid(0x50a_c001).to_string(),
            proxy: uuid(0x50a_c002).to_string(),
        }
    }
}

fn pod_name(number: u64) -> String {
    format!("replaced-{number:010}")
}

impl Place {
    /// Writes the life of the service's first one more pod, and keeps what etcd holds after each step.
    async fn record(world: &World, etcd: &Etcd, service: usize) -> Result<Self> {
        let number = world.size.proxies + service;
        let Object {
            collection,
            mut body,
            status,
        } = pod(service, number);
        let (namespace, service_name) = (namespace(service), name(service));
        let pod_name = pod_name(service as u64);
        body["metadata"]["name"] = pod_name.clone().into();
        let label = &body["metadata"]["labels"][labels::PROXY_UUID];
        let proxy = label.as_str().context("a pod without a proxy")?.to_owned();
        let pod_key = format!("pods/{namespace}/{pod_name}");
        let slice_key = format!("endpointslices/{namespace}/{service_name}");
        let absent = etcd.get(&slice_key).await?;

        let created = Object {
            collection: collection.clone(),
            body,
            status: None,
        };
        world.api.create(&created).await?;
        let pending = etcd.get(&pod_key).await?;
        let status = status.context("a pod without a status")?;
        let own = format!("{collection}/{pod_name}/status");
        world.api.write(&Write::merge(own, &status)).await?;
        let running = etcd.get(&pod_key).await?;
        let endpoint = json!({
            "addresses": [address(number).to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod_name},
        });
        let change = json!([{"op": "add", "path": "/endpoints/-", "value": endpoint}]);
        world
            .api
            .write(&Write::patch(slice_path(service), &change))
            .await?;
        let ready = etcd.get(&slice_key).await?;

        let pods: Objects<Pod> = Objects::namespaced(world.api.client(), &namespace);
        let uid = pods.get(&pod_name).await?.metadata.uid;
        Ok(Self {
            namespace,
            service: service_name,
            first: Texts {
                name: pod_name,
                uid: uid.context("a pod without a uid")?,
                proxy,
            },
            absent,
            pending,
            running,
            ready,
        })
    }

    /// The pod of number `old` goes, the one of number `new` comes.
    async fn replace(&self, etcd: &Etcd, old: u64, new: u64) -> Result<()> {
        let slice = format!("endpointslices/{}/{}", self.namespace, self.service);
        let pod = |number| format!("pods/{}/{}", self.namespace, pod_name(number));
        etcd.put(&slice, self.absent.clone()).await?;
        etcd.delete(&pod(old)).await?;
        etcd.put(&pod(new), self.renamed(&self.pending, new)).await?;
        etcd.put(&pod(new), self.renamed(&self.running, new)).await?;
        etcd.put(&slice, self.renamed(&self.ready, new)).await
    }

    fn renamed(&self, stored: &[u8], number: u64) -> Vec<u8> {
        let (old, new) = (&self.first, Texts::of(number));
        let mut bytes = stored.to_vec();
        for (old, new) in [
            (&old.name, &new.name),
            (&old.uid, &new.uid),
            (&old.proxy, &new.proxy),
        ] {
            overwrite(&mut bytes, old.as_bytes(), new.as_bytes());
        }
        bytes
    }
}

impl Measure<'_> {
    /// Replaces pods until so many events were written, at so many a second.
    pub(crate) async fn soak(&mut self, events: u64, rate: u64) -> Result<()> {
        let etcd = self.world.api.etcd();
        let services = self.world.size.services;
        ensure!(
            services > CONCURRENT,
            "a soak takes more than {CONCURRENT} services"
        );
        let world = &*self.world;
        let places: Vec<Place> = stream::iter(0..services)
            .map(|service| Place::record(world, &etcd, service))
            .buffered(CONCURRENT)
            .try_collect()
            .await?;
        self.settle(self.fleet.tally().now(), 0).await?;

        let before = self.begin().await?;
        let seen = self.world.metric("osm_watch_events").await?;
        let begun = Instant::now();
        let gap = Duration::from_secs(1).mul_f64(EVENTS as f64 / rate.max(1) as f64);
        let mut samples = Vec::new();
        let mut sampled = begun;
        let mut written = 0;
        let replace = |number: u64| {
            let place = &places[number as usize % services];
            place.replace(&etcd, number, number + services as u64)
        };
        let mut running = std::pin::pin!(paced(events / EVENTS, gap, replace).buffered(CONCURRENT));
        while let Some(done) = running.next().await {
            done?;
            written += EVENTS;
            if sampled.elapsed() >= SAMPLING {
                sampled = Instant::now();
                let resident = self.world.usage()?.resident;
                samples.push(Sample {
                    events: written,
                    resident,
                });
                if samples.len() % SHOWN == 0 {
                    eprintln!("        {written} of {events} events, {resident:.1} MB");
                }
            }
        }
        let achieved = written as f64 / begun.elapsed().as_secs_f64();
        self.settle(self.fleet.tally().now(), 0).await?;
        let seen = self.world.metric("osm_watch_events").await? - seen;
        ensure!(
            seen >= written as f64 * self.world.controllers.len() as f64,
            "the controllers were told of {seen} events only, of {written}"
        );
        let mut phase = self.finish("soak", &before, 1).await?;
        phase.proxies = self.fleet.tally().answered_since(before.moment).len();
        phase.growth = growth(&samples);
        phase.note = format!(
            "{written} events, {achieved:.0}/s of {rate}; {:.0} µs of CPU each; {:.1} MB more for each million in the second half",
            phase.cpu * 1e6 / written.max(1) as f64,
            slope(&samples[samples.len() / 2..]) * 1e6,
        );
        self.keep(phase);
        Ok(())
    }
}

/// Memory in the last quarter against that in the second one: medians. The first quarter is for what fills once.
fn growth(samples: &[Sample]) -> Option<f64> {
    let quarter = samples.len() / 4;
    let median = |samples: &[Sample]| {
        let mut values: Vec<f64> = samples.iter().map(|sample| sample.resident).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(median(&samples[samples.len() - quarter..])? / median(&samples[quarter..2 * quarter])?)
}

/// Megabytes for each event: the line through the samples (least squares); 0 of fewer than two.
fn slope(samples: &[Sample]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (events, resident) = (mean(|one| one.events as f64), mean(|one| one.resident));
    let (mut along, mut up) = (0.0, 0.0);
    for sample in samples {
        let distance = sample.events as f64 - events;
        along += distance * distance;
        up += distance * (sample.resident - resident);
    }
    if along > 0.0 { up / along } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(resident: impl Fn(u64) -> f64) -> Vec<Sample> {
        let sample = |number| Sample {
            events: number * 1_000,
            resident: resident(number),
        };
        (0..100).map(sample).collect()
    }

    #[test]
    fn a_leak_shows_and_what_fills_once_does_not() {
        let leaking = samples(|number| 100.0 + number as f64);
        assert!((slope(&leaking) * 1e3 - 1.0).abs() < 1e-9, "{}", slope(&leaking));
        assert!(growth(&leaking).unwrap() > 1.3);
        let filling = samples(|number| 100.0 + number.min(20) as f64 + (number % 3) as f64);
        assert!(slope(&filling[50..]).abs() * 1e3 < 0.01);
        assert!((growth(&filling).unwrap() - 1.0).abs() < 0.01);
        assert_eq!(growth(&[]), None);
        assert!(slope(&[]).abs() < f64::EPSILON);
    }

    #[test]
    fn no_two_pods_are_alike_and_all_texts_are_as_long() {
        let [first, later] = [0, 4_000_000_000].map(Texts::of);
        assert_eq!(first.name.len(), later.name.len());
        assert_eq!(first.uid.len(), later.uid.len());
        assert_ne!(later.uid, later.proxy);
    }
}
