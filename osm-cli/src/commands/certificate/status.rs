//! `osm certificate status`.

use anyhow::Result;
use clap::Args;
use osm_core::certificate::rotation::{
    self, Role, RootObject,
    progress::Count,
    stage::{self, Stage},
};
use serde_json::{Value, json};

use super::state::State;
use crate::cluster::Cluster;
use crate::output::{self, Format};
use crate::{DEFAULT_MESH, Global, mesh_name};

/// Shows the roots of a mesh.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Name of the mesh
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MESH, value_parser = mesh_name)]
    mesh_name: String,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Status {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let cluster = Cluster::connect(global).await?;
        let mesh = cluster.mesh(&self.mesh_name).await?;
        let state = State::read(&cluster, &mesh).await?;
        match self.output {
            Format::Json => output::json(&machine(&state)),
            Format::Table => output::print(&people(&state)),
        }
    }
}

/// What signs now, in one sentence.
fn in_use(state: &State) -> String {
    match rotation::plan(&state.home.configured, &state.objects) {
        Ok(plan) => match &plan.signs.object {
            Some(name) => format!(
                "{name} ({}) signs; {} roots are trusted",
                plan.signs.source,
                plan.trusts.len()
            ),
            None => format!(
                "the configured provider ({}) signs; {} roots are trusted",
                plan.signs.source,
                plan.trusts.len()
            ),
        },
        Err(error) => format!("the objects contradict each other, and what was in use stays in use: {error}"),
    }
}

/// What a rotation that is under way waits for.
fn waiting(state: &State) -> Option<(String, Vec<String>)> {
    let target = stage::target(&state.objects)?;
    let next = stage::next(target, &state.home.configured, &state.objects).ok()?;
    Some(match next {
        Stage::Describe => ("describe the root in use".to_owned(), Vec::new()),
        Stage::Assign { object, role, after } => {
            let obstacles = after.map_or_else(Vec::new, |(goal, root)| state.obstacles(goal, &root, None));
            (format!("make {object} {role}"), obstacles)
        }
        Stage::Finish { goal, object } => ("finish".to_owned(), state.obstacles(goal, &object, None)),
    })
}

fn sum(object: &RootObject, what: impl Fn(&rotation::Report) -> Option<Count>) -> Option<Count> {
    let counts: Vec<Count> = object.reports.values().filter_map(what).collect();
    (!counts.is_empty()).then(|| Count {
        total: counts.iter().map(|count| count.total).sum(),
        behind: counts.iter().map(|count| count.behind).sum(),
    })
}

fn people(state: &State) -> String {
    let mut text = format!("{}\n", in_use(state));
    let short = |fingerprint: &str| fingerprint.chars().take(16).collect::<String>();
    let rows: Vec<Vec<String>> = state
        .objects
        .readable
        .iter()
        .map(|(name, object)| {
            let reports = || object.reports.values();
            let number = |of: fn(&rotation::Report) -> bool| reports().filter(|report| of(report)).count();
            let known = reports().find(|report| !report.fingerprint.is_empty());
            let count = |count: Option<Count>| match count {
                Some(Count { total, behind: 0 }) => total.to_string(),
                Some(Count { total, behind }) => format!("{total} ({behind} behind)"),
                None => "-".to_owned(),
            };
            vec![
                name.clone(),
                object.role.to_string(),
                object.source.to_string(),
                known.map_or("-".to_owned(), |report| short(&report.fingerprint)),
                known.map_or("-".to_owned(), |report| {
                    report.not_after.chars().take(10).collect()
                }),
                format!("{}/{}", number(|report| report.trusted), object.reports.len()),
                format!("{}/{}", number(|report| report.signing), object.reports.len()),
                reports()
                    .map(|report| report.certificates)
                    .sum::<u64>()
                    .to_string(),
                count(sum(object, |report| report.proxies)),
                count(sum(object, |report| report.secrets)),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let header = [
            "NAME",
            "ROLE",
            "PROVIDER",
            "SHA-256",
            "EXPIRES",
            "TRUSTED",
            "SIGNING",
            "CERTIFICATES",
            "SIDECARS",
            "SECRETS",
        ];
        text.push_str(&output::table(&header, &rows));
    }
    for (name, problem) in &state.objects.problems {
        text.push_str(&format!("{name} is ignored: {problem}\n"));
    }
    if let Some((next, obstacles)) = waiting(state) {
        text.push_str(&format!("A rotation is under way. Next: {next}\n"));
        for obstacle in obstacles {
            text.push_str(&format!("  waiting: {obstacle}\n"));
        }
    }
    text
}

fn machine(state: &State) -> Value {
    let plan = rotation::plan(&state.home.configured, &state.objects);
    let roots: Vec<Value> = state
        .objects
        .readable
        .iter()
        .map(|(name, object)| {
            json!({
                "name": name, "role": object.role, "provider": object.source.to_string(),
                "generation": object.generation, "replicas": object.reports,
            })
        })
        .collect();
    let under_way = waiting(state);
    json!({
        "configured": state.home.configured.to_string(),
        "signs": plan.as_ref().ok().map(|plan| plan.signs.source.to_string()),
        "problem": plan.as_ref().err().map(ToString::to_string),
        "roots": roots,
        "problems": state.objects.problems,
        "rotation": under_way.map(|(next, waiting)| {
            json!({ "target": stage::target(&state.objects), "next": next, "waitingFor": waiting })
        }),
        "active": state.objects.readable.iter().filter(|(_, object)| object.role == Role::Active)
            .map(|(name, _)| name).collect::<Vec<_>>(),
    })
}
