//! `osm certificate rotate`: from one root to another, step by step.
//!
//! Owns the order of waiting and writing; what the next step is and what it waits for is decided in
//! [`osm_core::certificate::rotation`]. Invariant: a step is taken only after the mesh has followed the last one; whenever
//! this is interrupted, the mesh works as it is, and the same command goes on from there.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use osm_core::api::mesh_root_certificate::{MeshRootCertificate, MeshRootCertificateSpec};
use osm_core::api::names;
use osm_core::certificate::rotation::progress::Goal;
use osm_core::certificate::rotation::stage::{self, Stage};
use osm_core::certificate::rotation::{self, Role, RootObject, Source};
use serde_json::json;

use super::state::{State, api};
use crate::cluster::{Cluster, Mesh, chain};
use crate::commands::confirm::confirm;
use crate::progress::Step;
use crate::{DEFAULT_MESH, Global, duration, mesh_name};

/// How often the cluster is asked how far it is.
const LOOK: Duration = Duration::from_secs(2);
/// More steps than any rotation has.
const MOST_STEPS: usize = 10;
/// The endings of the Secrets that new roots are kept in, used in turn. The chart lets the control plane read them.
const TURNS: [&str; 2] = ["a", "b"];

/// Replaces the root certificate.
#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Name of the mesh
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MESH, value_parser = mesh_name)]
    mesh_name: String,
    /// The MeshRootCertificate to rotate to; also goes back to an earlier one
    #[arg(
        short = 'c',
        long = "meshrootcertificate",
        value_name = "NAME",
        conflicts_with = "file"
    )]
    certificate: Option<String>,
    /// A file with the MeshRootCertificate to rotate to
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The mesh's trust domain; a rotation keeps it
    #[arg(short, long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Does not ask
    #[arg(short = 'y', long)]
    accept: bool,
    /// Deletes the old MeshRootCertificate at the end, and the Secret of its root if an earlier rotation made it
    #[arg(short, long)]
    delete: bool,
    /// How long one step may take
    #[arg(short, long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse)]
    wait: Duration,
}

impl Rotate {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let cluster = Cluster::connect(global).await?;
        let mesh = cluster.mesh(&self.mesh_name).await?;
        let state = State::read(&cluster, &mesh).await?;
        if let Some(wanted) = &self.trust_domain
            && *wanted != state.home.trust_domain.to_string()
        {
            bail!(
                "The mesh's trust domain is {}, and a rotation keeps it: leave --trust-domain out",
                state.home.trust_domain
            );
        }
        let rotation = Rotation {
            cluster: &cluster,
            mesh: &mesh,
            wait: self.wait,
        };
        let wanted = self.target(&rotation, &state).await?;
        let question = format!("Rotate the root of mesh [{}] to {} ? [y/n]: ", mesh.name, wanted);
        if !self.accept && !confirm(&question, "--accept", &mut std::io::stdin().lock())? {
            return Ok(());
        }
        rotation.run(&wanted).await?;
        let (name, _) = wanted.parts();
        println!(
            "The root of mesh [{}] is that of MeshRootCertificate [{name}] now",
            mesh.name
        );
        if self.delete {
            rotation.delete_old(name).await?;
        }
        Ok(())
    }

    /// Where to: what was asked for, what an interrupted rotation was for, or a new root of the built-in CA.
    async fn target(&self, rotation: &Rotation<'_>, state: &State) -> Result<Target> {
        if let Some(name) = &self.certificate {
            if !state.objects.readable.contains_key(name) {
                let why = state.objects.problems.get(name);
                let why = why.map_or("there is none of that name".to_owned(), Clone::clone);
                bail!("MeshRootCertificate [{name}] cannot be rotated to: {why}");
            }
            return Ok(Target::Existing(name.clone()));
        }
        if let Some(file) = &self.file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("Could not read {}", file.display()))?;
            let mut object: MeshRootCertificate = serde_saphyr::from_str(&text)
                .with_context(|| format!("{} is not a MeshRootCertificate", file.display()))?;
            object.spec.role = Role::Passive;
            RootObject::from(&object, &state.home)
                .map_err(|problem| anyhow!("{} cannot be used: {problem}", file.display()))?;
            let name = object.metadata.name.clone().filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| anyhow!("{} has no metadata.name", file.display()))?;
            return Ok(match state.objects.readable.contains_key(&name) {
                true => Target::Existing(name),
                false => Target::New(name, Box::new(object.spec)),
            });
        }
        if let Some(name) = stage::target(&state.objects) {
            return Ok(Target::Existing(name.to_owned()));
        }
        let Source::Tresor { secret } = &state.home.configured else {
            bail!(
                "The mesh's certificates come from {}: describe the new root in a MeshRootCertificate and give it with --file",
                state.home.configured
            );
        };
        let secrets = Api::<Secret>::namespaced(rotation.cluster.client.clone(), &rotation.mesh.namespace);
        for turn in TURNS {
            let name = format!("{secret}-{turn}");
            let source = Source::Tresor { secret: name.clone() };
            let mut objects = state.objects.readable.iter();
            let taken = objects.any(|(known, object)| *known == name || object.source.is_same(&source));
            let exists = secrets
                .get_metadata_opt(&name)
                .await
                .context("Could not look for the Secrets of roots")?;
            if !taken && exists.is_none() {
                let spec = spec(&source, state)?;
                return Ok(Target::New(name, Box::new(spec)));
            }
        }
        bail!(
            "Both Secrets for new roots, {secret}-a and {secret}-b, are in use or left from earlier rotations: delete the \
             MeshRootCertificate and the Secret of the one that is inactive, or name one with --meshrootcertificate"
        )
    }
}

fn spec(source: &Source, state: &State) -> Result<MeshRootCertificateSpec> {
    let provider = source.to_provider(&state.home.namespace).ok_or_else(|| {
        anyhow!("The token of {source} is a flag of the control plane: put it into a Secret first, as the chart does")
    })?;
    Ok(MeshRootCertificateSpec {
        trust_domain: state.home.trust_domain.to_string(),
        role: Role::Passive,
        spiffe_enabled: false,
        provider,
    })
}

/// Where a rotation leads.
enum Target {
    /// To an object that is there.
    Existing(String),
    /// To one that is to be made.
    New(String, Box<MeshRootCertificateSpec>),
}

impl Target {
    fn parts(&self) -> (&str, Option<&MeshRootCertificateSpec>) {
        match self {
            Target::Existing(name) => (name, None),
            Target::New(name, spec) => (name, Some(spec)),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Existing(name) => write!(f, "MeshRootCertificate [{name}]"),
            Target::New(name, _) => write!(f, "a new MeshRootCertificate [{name}]"),
        }
    }
}

struct Rotation<'a> {
    cluster: &'a Cluster,
    mesh: &'a Mesh,
    wait: Duration,
}

impl Rotation<'_> {
    async fn run(&self, target: &Target) -> Result<()> {
        let (name, new) = target.parts();
        for _ in 0..MOST_STEPS {
            let state = State::read(self.cluster, self.mesh).await?;
            if !state.objects.readable.contains_key(name) {
                self.introduce(&state, name, new).await?;
                continue;
            }
            match stage::next(name, &state.home.configured, &state.objects)? {
                Stage::Describe => self.describe(&state).await?,
                Stage::Assign { object, role, after } => {
                    if let Some((goal, root)) = after {
                        self.wait_for(goal, &root).await?;
                    }
                    self.assign(&object, role).await?;
                }
                Stage::Finish { goal, object } => {
                    self.wait_for(goal, &object).await?;
                    if goal == Goal::Signing {
                        return Ok(());
                    }
                }
            }
        }
        bail!("The rotation does not come to an end: somebody else changes the MeshRootCertificates, too")
    }

    /// Makes the target's object, after the root in use has one.
    async fn introduce(
        &self,
        state: &State,
        name: &str,
        new: Option<&MeshRootCertificateSpec>,
    ) -> Result<()> {
        let Some(spec) = new else {
            bail!("MeshRootCertificate [{name}] was deleted meanwhile");
        };
        let plan = rotation::plan(&state.home.configured, &state.objects)?;
        if plan.trusts.len() > 1 {
            bail!("A rotation is under way: finish it first with `osm certificate rotate`");
        }
        match &plan.signs.object {
            None => self.describe(state).await,
            Some(present) => {
                self.wait_for(Goal::Signing, present).await?;
                self.create(name, spec.clone()).await
            }
        }
    }

    /// Writes the root in use down as an active object.
    async fn describe(&self, state: &State) -> Result<()> {
        let mut spec = spec(&state.home.configured, state)?;
        spec.role = Role::Active;
        self.create(names::MESH_ROOT_CERTIFICATE, spec).await
    }

    async fn create(&self, name: &str, spec: MeshRootCertificateSpec) -> Result<()> {
        let step = Step::begin(format!("Creating MeshRootCertificate {name} as {}", spec.role));
        let object = MeshRootCertificate::new(name, spec);
        let created = api(self.cluster, self.mesh)
            .create(&PostParams::default(), &object)
            .await;
        match created {
            Ok(_) => {
                step.done();
                Ok(())
            }
            Err(error) => {
                step.failed();
                bail!(
                    "MeshRootCertificate [{name}] could not be created: {}",
                    chain(&error)
                )
            }
        }
    }

    /// Gives an object a role. The webhook may know of a reason to wait that was not seen here.
    async fn assign(&self, name: &str, role: Role) -> Result<()> {
        let mut step = Step::begin(format!("Making MeshRootCertificate {name} {role}"));
        let begun = Instant::now();
        let patch = json!({ "spec": { "role": role } });
        loop {
            let written = api(self.cluster, self.mesh)
                .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                .await;
            let error = match written {
                Ok(_) => {
                    step.done();
                    return Ok(());
                }
                Err(error) => chain(&error),
            };
            if !error.contains("not ready for this step") || begun.elapsed() > self.wait {
                step.failed();
                bail!("MeshRootCertificate [{name}] could not be made {role}: {error}");
            }
            step.update(&error);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the mesh has followed.
    async fn wait_for(&self, goal: Goal, root: &str) -> Result<()> {
        let mut step = Step::begin(match goal {
            Goal::Trusted => format!("Waiting until every replica and sidecar trusts {root}"),
            Goal::Signing => format!("Waiting until every replica signs with {root}"),
            Goal::Unused => format!("Waiting until nothing in use is signed by {root}"),
            Goal::Gone => format!("Waiting until no replica trusts {root}"),
        });
        let begun = Instant::now();
        let mut seen = None;
        loop {
            let state = State::read(self.cluster, self.mesh).await?;
            let seen = seen.get_or_insert_with(|| state.times(root));
            let obstacles = state.obstacles(goal, root, Some(seen));
            let Some(first) = obstacles.first() else {
                step.done();
                return Ok(());
            };
            if begun.elapsed() > self.wait {
                step.failed();
                bail!(
                    "The mesh did not follow within {} s, and works as it is: {}; see to that and run the same command again",
                    self.wait.as_secs(),
                    obstacles.join("; ")
                );
            }
            match obstacles.len() {
                1 => step.update(first),
                more => step.update(&format!("{first}, and {} more", more - 1)),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Deletes the objects that are inactive now, and the Secrets that rotations made for their roots.
    async fn delete_old(&self, target: &str) -> Result<()> {
        let state = State::read(self.cluster, self.mesh).await?;
        let old = state.objects.readable.iter();
        for (name, object) in old.filter(|(name, object)| *name != target && object.role == Role::Inactive) {
            api(self.cluster, self.mesh)
                .delete(name, &DeleteParams::default())
                .await
                .with_context(|| format!("Could not delete MeshRootCertificate [{name}]"))?;
            println!("MeshRootCertificate [{name}] deleted");
            let Source::Tresor { secret } = &object.source else {
                continue;
            };
            let made_by_a_rotation = match &state.home.configured {
                Source::Tresor { secret: first } => {
                    TURNS.iter().any(|turn| *secret == format!("{first}-{turn}"))
                }
                _ => false,
            };
            if made_by_a_rotation {
                let secrets = Api::<Secret>::namespaced(self.cluster.client.clone(), &self.mesh.namespace);
                match secrets.delete(secret, &DeleteParams::default()).await {
                    Ok(_) => println!("Secret [{secret}] deleted"),
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => bail!("Could not delete Secret [{secret}]: {}", chain(&error)),
                }
            }
        }
        Ok(())
    }
}
