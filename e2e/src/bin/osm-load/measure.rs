//! Measuring: what a phase does to the fleet and the servers, from outside.
//!
//! Owns how a phase begins and ends. A phase is over when what was to happen has happened and nothing has moved for a
//! while; that quiet time is in its CPU figures and not in its latencies.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rand::Rng as _;

use crate::{
    api::Write,
    fleet::Fleet,
    phase::{Latency, Phase, Sent},
    server::{Usage, own_usage},
    tally::Count,
    world::World,
};

/// Nothing may move for so long before a change counts as over.
const QUIET: Duration = Duration::from_millis(400);
/// Longest wait for a phase: 10,000 proxies that see 1,000 services are sent 45 GB.
const PATIENCE: Duration = Duration::from_secs(900);

/// A fleet connected to a world, and what was measured on it so far.
pub(crate) struct Measure<'a> {
    /// The mesh.
    pub(crate) world: &'a mut World,
    /// The fake Envoys.
    pub(crate) fleet: Fleet,
    /// Finished phases.
    pub(crate) phases: Vec<Phase>,
    /// What the names of phases begin with.
    pub(crate) prefix: String,
    /// Whether everyone may call everyone.
    pub(crate) permissive: bool,
}

/// How things stood when a phase began.
pub(crate) struct Before {
    begun: Instant,
    pub(crate) moment: u64,
    count: Count,
    usage: Usage,
    generator: Usage,
    api: f64,
    built: f64,
}

impl Measure<'_> {
    pub(crate) async fn begin(&self) -> Result<Before> {
        self.world.forget_peaks();
        let tally = self.fleet.tally();
        Ok(Before {
            built: self.world.metric("osm_engine_resources_built").await?,
            usage: self.world.usage()?,
            generator: own_usage(),
            api: self.world.api.cpu()?,
            count: tally.count(),
            begun: Instant::now(),
            moment: tally.now(),
        })
    }

    /// What a phase cost, its latencies aside.
    pub(crate) async fn finish(&self, name: &str, before: &Before, repetitions: usize) -> Result<Phase> {
        let seconds = before.begun.elapsed().as_secs_f64();
        let (usage, generator) = (self.world.usage()?, own_usage());
        let count = self.fleet.tally().count().since(&before.count);
        let each = |value: f64| value / repetitions.max(1) as f64;
        Ok(Phase {
            name: format!("{}{name}", self.prefix),
            repetitions,
            seconds,
            sent: Sent::of(&count, repetitions),
            connects: count.connects,
            refusals: count.refusals,
            failures: count.failures,
            rejections: count.rejections,
            cpu: each(usage.cpu - before.usage.cpu),
            load: (usage.cpu - before.usage.cpu) / seconds,
            idle: self.idle_load(),
            resident: usage.resident,
            peak: usage.peak,
            generator_cpu: each(generator.cpu - before.generator.cpu),
            api_cpu: each(self.world.api.cpu()? - before.api),
            built: each(self.world.metric("osm_engine_resources_built").await? - before.built),
            ..Phase::default()
        })
    }

    /// Keeps a phase, and shows that there is one more.
    pub(crate) fn keep(&mut self, phase: Phase) {
        eprintln!(
            "        {}: {} proxies, p50 {:.3} s, p99 {:.3} s, last {:.3} s, {:.3} CPU s, {:.0} MB (peak {:.0} MB) {}",
            phase.name,
            phase.proxies,
            phase.latency.p50,
            phase.latency.p99,
            phase.latency.max,
            phase.cpu,
            phase.resident,
            phase.peak,
            phase.note,
        );
        self.phases.push(phase);
    }

    /// What the server did each second when last nothing was asked of it; 0 if that was not measured since all connected.
    fn idle_load(&self) -> f64 {
        let newest_first = self.phases.iter().rev();
        newest_first
            .take_while(|phase| phase.connects == 0)
            .find(|phase| phase.name.ends_with(": idle"))
            .map_or(0.0, |phase| phase.load)
    }

    /// Waits until nothing has moved for [`QUIET`], and at least as long after `moment`.
    pub(crate) async fn settle(&self, moment: u64, expected: usize) -> Result<()> {
        let tally = self.fleet.tally();
        let quiet = u64::try_from(QUIET.as_micros())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            tokio::time::sleep(QUIET / 8).await;
            let now = tally.now();
            let is_quiet = now.saturating_sub(tally.last().max(moment)) >= quiet;
            let has_all = tally.answered_since(moment).len() >= expected;
            // What is expected may not come; that is the result then.
            let gave_up = now.saturating_sub(tally.last().max(moment)) >= 25 * quiet;
            if (is_quiet && has_all) || gave_up {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no quiet after {PATIENCE:?}");
        }
    }

    /// Does the writes in turn, `repetitions` times, each when the last one has come to rest; measures how long each took
    /// to reach the last proxy. `concerned` is how many should be sent something.
    pub(crate) async fn change(
        &mut self,
        name: &str,
        repetitions: usize,
        concerned: Option<usize>,
        writes: &[Write],
    ) -> Result<()> {
        let before = self.begin().await?;
        let mut latencies = Vec::new();
        let mut fewest = usize::MAX;
        let mut most = 0;
        for repetition in 0..repetitions {
            // Not in step with anything periodic.
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..50))).await;
            let moment = self.fleet.tally().now();
            self.world.api.write(&writes[repetition % writes.len()]).await?;
            self.settle(moment, concerned.unwrap_or(0)).await?;
            let answered = self.fleet.tally().answered_since(moment);
            fewest = fewest.min(answered.len());
            most = most.max(answered.len());
            latencies.push(answered.iter().map(|(_, at)| at - moment).collect());
        }
        let mut phase = self.finish(name, &before, repetitions).await?;
        phase.latency = Latency::of(&latencies);
        phase.proxies = most;
        phase.expected = concerned;
        if fewest != most {
            phase.note = format!("between {fewest} and {most} proxies");
        }
        self.keep(phase);
        Ok(())
    }

    /// Lets proxies connect, and waits until all have everything.
    pub(crate) async fn connect(&mut self, name: &str, which: Range<usize>) -> Result<()> {
        let before = self.begin().await?;
        let already = self.fleet.tally().synced();
        let count = which.len();
        self.fleet.order(which.clone(), |mode| mode.connected = true);
        self.until_synced(already + count).await?;
        let synced = self.fleet.tally().answered_since(before.moment);
        self.settle(self.fleet.tally().now(), 0).await?;
        let mut phase = self.finish(name, &before, 1).await?;
        phase.latency = Latency::of(&[synced.iter().map(|(_, at)| at - before.moment).collect()]);
        phase.proxies = count;
        let streams = self.fleet.tally().streams();
        if streams.len() > 1 {
            let each: Vec<String> = streams.iter().map(usize::to_string).collect();
            phase.note = each.join(" + ");
            phase.streams = streams;
        }
        self.keep(phase);
        Ok(())
    }

    /// Waits until so many proxies have everything.
    pub(crate) async fn until_synced(&self, proxies: usize) -> Result<()> {
        let begun = Instant::now();
        while self.fleet.tally().synced() < proxies {
            ensure!(
                begun.elapsed() < PATIENCE,
                "only {} of {proxies} proxies have everything after {PATIENCE:?}",
                self.fleet.tally().synced()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Does nothing for a while.
    pub(crate) async fn idle(&mut self, name: &str, time: Duration) -> Result<()> {
        let before = self.begin().await?;
        tokio::time::sleep(time).await;
        let mut phase = self.finish(name, &before, 1).await?;
        phase.proxies = self.fleet.tally().answered_since(before.moment).len();
        phase.expected = Some(0);
        self.keep(phase);
        Ok(())
    }

    /// Kills the controllers without a word, starts others, and waits until every stream is back and every proxy has answered
    /// something: even one that has everything is sent its certificate again, which is not kept.
    pub(crate) async fn restart(&mut self, name: &str) -> Result<()> {
        let controllers = self.world.controllers.len();
        let streams = self.fleet.tally().streams().iter().sum::<usize>();
        let before = self.begin().await?;
        let ready = self.world.start(controllers).await?;
        let begun = Instant::now();
        while self.fleet.tally().streams().iter().sum::<usize>() < streams {
            ensure!(
                begun.elapsed() < PATIENCE,
                "not all proxies are back after {PATIENCE:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.settle(before.moment, streams).await?;
        let answered = self.fleet.tally().answered_since(before.moment);
        // The new processes' accounts begin at zero.
        let before = Before {
            usage: Usage::default(),
            built: 0.0,
            ..before
        };
        let mut phase = self.finish(name, &before, 1).await?;
        phase.latency = Latency::of(&[answered.iter().map(|(_, at)| at - before.moment).collect()]);
        phase.proxies = answered.len();
        phase.expected = Some(streams);
        phase.note = format!("ready after {:.2} s", ready.as_secs_f64());
        self.keep(phase);
        Ok(())
    }
}
