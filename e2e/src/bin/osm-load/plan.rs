//! What is done to a mesh, in which order.
//!
//! Owns the steps. Each is a few writes and what is to be expected of them; measuring is [`Measure`]'s.

use std::{
    collections::BTreeSet,
    ops::Range,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;

use crate::{
    api::{Api, Write},
    measure::Measure,
    paced::paced,
    phase::{Latency, Phase},
    population::{HUB, Size, mesh_config, name, namespace, pod, pod_name, slice_path, split},
    sidecar::Variant,
    world::World,
};
use osm_e2e::progress::Progress;

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// The proxies of the hub's callers, and the hub's, connect.
    ConnectInterested,
    /// All others connect.
    ConnectAll,
    /// Nothing happens for so many seconds.
    Idle(u64),
    /// An endpoint of the hub becomes unready and ready again, so often.
    Endpoint(usize),
    /// One caller of the hub is forbidden and allowed again, so often.
    Target(usize),
    /// The weights of the hub's TrafficSplit change, so often.
    Split(usize),
    /// Writes that mean nothing to the mesh, so many seconds at so many a second.
    Unrelated(u64, u64),
    /// The mesh becomes permissive, or stops to be, and the other way round.
    Switch,
    /// The controllers are killed and started again.
    Restart,
    /// A tenth of the proxies stop to read while endpoints change.
    Slow(usize),
    /// A tenth of the proxies reject every response while endpoints change.
    Reject(usize),
    /// Pods are replaced, so many seconds at so many a second.
    Churn(u64, u64),
    /// So many events of pods that are replaced, at so many a second: more than an API server can be told to do.
    Soak(u64, u64),
}

/// Whose control plane is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlPlane {
    /// Ours.
    Osm,
    /// The peer's.
    Istiod,
}

/// A mesh in one mode, and what is done to it.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// What phases are called after.
    pub(crate) name: String,
    /// Whether everyone may call everyone.
    pub(crate) permissive: bool,
    /// How the proxies speak.
    pub(crate) variant: Variant,
    /// Whose control plane it is.
    pub(crate) control_plane: ControlPlane,
    /// Its replicas.
    pub(crate) controllers: usize,
    /// What is done.
    pub(crate) steps: Vec<Step>,
}

/// A mesh written once, and its stages.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How large it is.
    pub(crate) size: Size,
    /// One after another.
    pub(crate) stages: Vec<Stage>,
}

impl FromStr for Step {
    type Err = anyhow::Error;

    /// Reads `idle=10`, `endpoint=5`, `churn=60@100` and so on.
    fn from_str(text: &str) -> Result<Self> {
        let (word, numbers) = text.split_once('=').unwrap_or((text, ""));
        let (first, second) = numbers.split_once('@').unwrap_or((numbers, ""));
        let number = |text: &str, usual: u64| -> Result<u64> {
            if text.is_empty() {
                return Ok(usual);
            }
            text.parse().with_context(|| format!("{text:?} is not a number"))
        };
        let times = usize::try_from(number(first, 3)?)?;
        Ok(match word {
            "connect-interested" => Self::ConnectInterested,
            "connect" => Self::ConnectAll,
            "idle" => Self::Idle(number(first, 10)?),
            "endpoint" => Self::Endpoint(times),
            "target" => Self::Target(times),
            "split" => Self::Split(times),
            "unrelated" => Self::Unrelated(number(first, 10)?, number(second, 1_000)?),
            "switch" => Self::Switch,
            "restart" => Self::Restart,
            "slow" => Self::Slow(times),
            "reject" => Self::Reject(times),
            "churn" => Self::Churn(number(first, 10)?, number(second, 200)?),
            "soak" => Self::Soak(number(first, 1_000_000)?, number(second, 1_500)?),
            _ => bail!(
                "no step is called {word:?}; there are connect-interested, connect, idle, endpoint, target, split, \
                 unrelated, switch, restart, slow, reject, churn, soak"
            ),
        })
    }
}

impl Plan {
    /// Writes the mesh and does everything that is planned; what was measured.
    pub(crate) async fn run(&self, threads: usize, progress: &Progress) -> Result<Vec<Phase>> {
        let api = Api::start(progress).await?;
        let begun = Instant::now();
        api.populate(&self.size).await?;
        progress.say(&format!(
            "        {} services, {} pods written in {:.0} s",
            self.size.services,
            self.size.proxies,
            begun.elapsed().as_secs_f64()
        ));
        let mut world = World::new(api, self.size);
        let mut phases = Vec::new();
        for stage in &self.stages {
            phases.extend(
                stage
                    .run(&mut world, threads, progress)
                    .await
                    .with_context(|| stage.name.clone())?,
            );
        }
        Ok(phases)
    }
}

impl Stage {
    async fn run(&self, world: &mut World, threads: usize, progress: &Progress) -> Result<Vec<Phase>> {
        world.prepare(self.control_plane, progress).await?;
        world.api.create(&mesh_config(self.permissive)).await?;
        world.api.write(&World::switch(self.permissive)).await?;
        let ready = world.start(self.controllers).await?;
        let usage = world.usage()?;
        let cold = Phase {
            name: format!("{}: cold start", self.name),
            repetitions: 1,
            seconds: ready.as_secs_f64(),
            latency: Latency {
                max: ready.as_secs_f64(),
                last: ready.as_secs_f64(),
                ..Latency::default()
            },
            cpu: usage.cpu,
            load: usage.cpu / ready.as_secs_f64(),
            resident: usage.resident,
            peak: usage.peak,
            built: world.metric("osm_engine_resources_built").await?,
            ..Phase::default()
        };
        let fleet = world.fleet(self.variant, threads).await?;
        let mut measure = Measure {
            world,
            fleet,
            phases: Vec::new(),
            prefix: format!("{}: ", self.name),
            permissive: self.permissive,
        };
        measure.keep(cold);
        for step in &self.steps {
            measure.step(step).await.with_context(|| format!("{step:?}"))?;
        }
        Ok(measure.phases)
    }
}

impl Measure<'_> {
    /// Does one step.
    pub(crate) async fn step(&mut self, step: &Step) -> Result<()> {
        let size = self.world.size;
        let interested = self.interested();
        match *step {
            Step::ConnectInterested => self.connect("connect, the first", interested).await,
            Step::ConnectAll => {
                let connected = self.fleet.tally().synced();
                self.connect("connect, all", connected..size.proxies).await
            }
            Step::Idle(seconds) => self.idle("idle", Duration::from_secs(seconds)).await,
            Step::Endpoint(times) => {
                let concerned = self.callers_of_the_hub();
                self.endpoint("one endpoint", times, Some(concerned)).await
            }
            Step::Target(times) => self.target(times).await,
            Step::Split(times) => self.split(times).await,
            Step::Unrelated(seconds, rate) => self.unrelated(seconds, rate).await,
            Step::Switch => self.switch().await,
            Step::Restart => self.restart("restart after SIGKILL").await,
            Step::Slow(times) => {
                let deaf = self.tenth();
                self.fleet.order(deaf.clone(), |mode| mode.reading = false);
                let others = self.callers_of_the_hub() - deaf.len();
                self.endpoint("one endpoint, a tenth does not read", times, Some(others))
                    .await?;
                self.fleet.order(deaf.clone(), |mode| mode.reading = true);
                self.settle(self.fleet.tally().now(), 0).await
            }
            Step::Reject(times) => {
                let stubborn = self.tenth();
                self.fleet.order(stubborn.clone(), |mode| mode.rejecting = true);
                let concerned = self.callers_of_the_hub();
                self.endpoint("one endpoint, a tenth rejects", times, Some(concerned))
                    .await?;
                self.fleet.order(stubborn, |mode| mode.rejecting = false);
                self.endpoint("one endpoint, accepted again", times, Some(concerned))
                    .await
            }
            Step::Churn(seconds, rate) => self.churn(seconds, rate).await,
            Step::Soak(events, rate) => self.soak(events, rate).await,
        }
    }

    /// The hub's proxies and those of its callers: they come first.
    fn interested(&self) -> Range<usize> {
        0..self.world.size.pods(self.world.size.hub_callers).end
    }

    /// How many connected proxies use the hub's endpoints.
    fn callers_of_the_hub(&self) -> usize {
        let streams = self.fleet.tally().streams().iter().sum();
        if self.permissive {
            return streams;
        }
        let size = self.world.size;
        streams.min(self.interested().end) - size.pods(HUB).len()
    }

    /// How many connected proxies may call a backend of a split between the hub and another service: they have its routes.
    fn callers_of_a_split(&self, other: usize) -> usize {
        if self.permissive {
            return self.callers_of_the_hub();
        }
        let size = self.world.size;
        let callers: BTreeSet<usize> = [HUB, other]
            .into_iter()
            .flat_map(|backend| size.callers_of(backend))
            .collect();
        callers.into_iter().map(|caller| size.pods(caller).len()).sum()
    }

    /// A tenth of the hub's callers.
    fn tenth(&self) -> Range<usize> {
        let first = self.world.size.pods(HUB).end;
        first..first + (self.interested().end - first) / 10
    }

    async fn endpoint(&mut self, name: &str, times: usize, concerned: Option<usize>) -> Result<()> {
        let path = slice_path(HUB);
        let ready = |ready: bool| {
            let change = json!([{"op": "replace", "path": "/endpoints/0/conditions/ready", "value": ready}]);
            Write::patch(path.clone(), &change)
        };
        // Twice each, so that all is as it was.
        self.change(name, times * 2, concerned, &[ready(false), ready(true)])
            .await
    }

    async fn target(&mut self, times: usize) -> Result<()> {
        let size = self.world.size;
        let callers = size.callers_of(HUB);
        let path = format!(
            "/apis/access.smi-spec.io/v1alpha3/namespaces/{}/traffictargets/{}",
            namespace(HUB),
            name(HUB)
        );
        let allowed = |callers: &[usize]| Write::merge(path.clone(), &size.target(HUB, callers));
        let fewer = &callers[..callers.len() - 1];
        let last = callers[callers.len() - 1];
        // In permissive mode nobody asks.
        let concerned = if self.permissive {
            0
        } else {
            size.pods(HUB).len() + size.pods(last).len()
        };
        self.change(
            "one TrafficTarget",
            times * 2,
            Some(concerned),
            &[allowed(fewer), allowed(&callers)],
        )
        .await
    }

    async fn split(&mut self, times: usize) -> Result<()> {
        let other = 1;
        let object = split(other, 10);
        let moment = self.fleet.tally().now();
        self.world.api.create(&object).await?;
        self.settle(moment, 0).await?;
        let path = format!("{}/hub", object.collection);
        let weights = |weight| Write::merge(path.clone(), &split(other, weight).body);
        let concerned = self.callers_of_a_split(other);
        self.change(
            "one TrafficSplit",
            times * 2,
            Some(concerned),
            &[weights(20), weights(10)],
        )
        .await?;
        let moment = self.fleet.tally().now();
        self.world.api.write(&Write::delete(path)).await?;
        self.settle(moment, 0).await
    }

    async fn switch(&mut self) -> Result<()> {
        let all = self.fleet.tally().streams().iter().sum();
        let permissive = self.permissive;
        let (there, back) = if permissive {
            ("to SMI", "to permissive")
        } else {
            ("to permissive", "to SMI")
        };
        self.change(
            &format!("switch {there}"),
            1,
            Some(all),
            &[World::switch(!permissive)],
        )
        .await?;
        self.change(
            &format!("switch {back}"),
            1,
            Some(all),
            &[World::switch(permissive)],
        )
        .await
    }

    /// Replaces pods one after another, as rolling updates do: a pod of a service goes, it comes back.
    async fn churn(&mut self, seconds: u64, rate: u64) -> Result<()> {
        let size = self.world.size;
        // The last tenth: their own streams would end.
        let first = size.proxies - (size.proxies / 10).max(1);
        let mut writes = Vec::new();
        for number in 0..seconds * rate / 5 {
            let proxy = first + usize::try_from(number).unwrap_or(0) % (size.proxies - first);
            let service = size.service_of(proxy);
            let slice = slice_path(service);
            let position = proxy - size.pods(service).start;
            let path = format!("/endpoints/{position}/conditions/ready");
            let ready = |ready: bool| {
                Write::patch(
                    slice.clone(),
                    &json!([{"op": "replace", "path": path, "value": ready}]),
                )
            };
            let object = pod(service, proxy);
            let own = format!("{}/{}", object.collection, pod_name(proxy));
            let status = object.status.clone().unwrap_or_default();
            writes.push(ready(false));
            writes.push(Write::delete(own.clone()));
            writes.push(Write::create(&object));
            writes.push(Write::merge(format!("{own}/status"), &status));
            writes.push(ready(true));
        }
        let before = self.begin().await?;
        let begun = Instant::now();
        // In order within a pod: one lane each.
        let gap = Duration::from_secs_f64(5.0 / rate as f64);
        let world = &*self.world;
        let lanes: Vec<&[Write]> = writes.chunks(5).collect();
        let replace = |number: u64| {
            let lane = lanes[number as usize];
            async move {
                for write in lane {
                    world.api.write(write).await?;
                }
                anyhow::Ok(())
            }
        };
        paced(lanes.len() as u64, gap, replace)
            .buffered(64)
            .try_collect::<()>()
            .await?;
        let written = writes.len();
        let achieved = written as f64 / begun.elapsed().as_secs_f64();
        self.settle(before.moment, 0).await?;
        let mut phase: Phase = self.finish("churn of pods", &before, 1).await?;
        let answered = self.fleet.tally().answered_since(before.moment);
        phase.proxies = answered.len();
        phase.latency = Latency::default();
        phase.note = format!("{written} writes, {achieved:.0}/s of {rate}");
        self.keep(phase);
        Ok(())
    }
}
