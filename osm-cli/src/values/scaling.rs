//! How many replicas of a component there are to be, and what speaks against it.
//!
//! The same rules as the chart's template `osm.scaling`; a test renders the chart and compares.

use serde_json::Value;

use super::{CANONICAL, ValueError, Values, refuse};

/// The fewest replicas of a component that is to be highly available.
const HA_REPLICAS: i64 = 3;

/// A component of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Component {
    Controller,
    Injector,
}

impl Component {
    /// Its key in the values.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Component::Controller => "osmController",
            Component::Injector => "injector",
        }
    }

    /// Its Deployment.
    pub(crate) fn deployment(self) -> &'static str {
        match self {
            Component::Controller => osm_core::api::names::CONTROLLER,
            Component::Injector => osm_core::api::names::INJECTOR,
        }
    }
}

/// The scaling of one component, as it will be in force before `ha` has its say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scaling {
    pub(crate) component: Component,
    /// Highly available: raises replicas and minReplicas to 3, switches the autoscaler and the budget on.
    pub(crate) ha: bool,
    pub(crate) replicas: i64,
    pub(crate) auto: bool,
    pub(crate) min: i64,
    pub(crate) max: i64,
    /// CPU target in percent of the request.
    pub(crate) cpu: Option<i64>,
    /// Memory target in percent of the request.
    pub(crate) memory: Option<i64>,
    pub(crate) budget: bool,
}

impl Scaling {
    /// Reads the scaling of a component.
    pub(crate) fn read(values: &Values, component: Component) -> Scaling {
        let get = |path: &str| values.get(&format!("{}.{path}", component.key()));
        let number = |path: &str| get(path).as_f64().map(|number| number as i64);
        let flag = |path: &str| get(path) == Value::Bool(true);
        Scaling {
            component,
            ha: values.get("ha") == Value::Bool(true),
            replicas: number("replicaCount").unwrap_or(1),
            auto: flag("autoScale.enable"),
            min: number("autoScale.minReplicas").unwrap_or(1),
            max: number("autoScale.maxReplicas").unwrap_or(5),
            cpu: number("autoScale.targetAverageUtilization")
                .or_else(|| number("autoScale.cpu.targetAverageUtilization")),
            memory: number("autoScale.memory.targetAverageUtilization"),
            budget: flag("enablePodDisruptionBudget"),
        }
    }

    /// Whether the autoscaler owns the number of replicas.
    pub(crate) fn scaled(&self) -> bool {
        self.auto || self.ha
    }

    /// The fewest replicas there will be.
    pub(crate) fn fewest(&self) -> i64 {
        let count = if self.scaled() { self.min } else { self.replicas };
        if self.ha { count.max(HA_REPLICAS) } else { count }
    }

    /// Refuses what no schema can: values that do not go together.
    pub(super) fn check(&self) -> Result<(), ValueError> {
        let at = format!("{CANONICAL}.{}.autoScale", self.component.key());
        let (min, max) = (self.min, self.max);
        if min > max {
            return Err(refuse!(
                "{at}.minReplicas is {min}, more than maxReplicas, which is {max}: lower the one or raise the other"
            ));
        }
        if self.ha && max < HA_REPLICAS {
            return Err(refuse!(
                "{at}.maxReplicas is {max}, but --ha needs at least {HA_REPLICAS} replicas: raise it to {HA_REPLICAS} or more"
            ));
        }
        if self.scaled() && self.cpu == Some(0) {
            return Err(refuse!(
                "{at}.cpu.targetAverageUtilization is 0, which no pod can stay under: give 1 to 100"
            ));
        }
        if self.scaled() && self.memory == Some(0) {
            return Err(refuse!(
                "{at}.memory.targetAverageUtilization is 0, which no pod can stay under: give 1 to 100, or leave it out"
            ));
        }
        Ok(())
    }

    /// A disruption budget of a component that may have one replica only blocks every drain of its node.
    pub(super) fn warning(&self) -> Option<String> {
        ((self.budget || self.ha) && self.fewest() == 1).then(|| {
            let key = self.component.key();
            let path = if self.scaled() { "autoScale.minReplicas" } else { "replicaCount" };
            format!(
                "{} has a disruption budget and may have one replica only, so draining its node will be refused: \
                 set {CANONICAL}.{key}.{path} to 2 or more",
                self.component.deployment()
            )
        })
    }
}
