//! The stages a batch goes through, in order.

use super::{
    BTreeMap, Change, Dirty, Engine, Stage,
    audience::World,
    build::{self, Materials},
    slots::SlotKey,
    tables::Tables,
};
use crate::{
    facts::{FactKey, FactKind, HttpRouteGroup, Problem, TcpRoute},
    identity::ServiceIdentity,
    policy::access::{self, Routes},
};

impl Engine {
    /// Recomputes what is dirty and what depends on it, and publishes.
    pub(super) fn propagate(&mut self, mut dirty: Dirty, change: &mut Change) {
        let dirty = &mut dirty;
        self.configure(dirty, change);
        if std::mem::take(&mut dirty.families) {
            dirty.mesh = true;
            dirty.clients.extend(self.classes.identities().cloned());
        }
        self.tables.relink(dirty);
        self.services.split(&self.tables, dirty, &mut self.diagnostics);
        self.services.refresh(
            &self.tables,
            &self.publication.slots,
            dirty,
            &mut self.diagnostics,
        );
        self.services.open(dirty, &mut self.diagnostics);
        self.services
            .route(&self.publication.slots, dirty, &mut self.diagnostics);
        self.permit(dirty);
        self.classes.assign(
            &self.tables,
            &self.services,
            dirty,
            &mut self.diagnostics,
            &mut self.publication,
        );

        let world = World {
            tables: &self.tables,
            services: &self.services,
            config: &self.config,
            trust_domain: &self.options.trust_domain,
        };
        let rebased = self
            .audiences
            .refresh(&world, &self.classes, dirty, &mut self.publication);
        for service in std::mem::take(&mut dirty.inbound) {
            dirty.classes.extend(self.classes.behind(&service));
        }
        let classes = std::mem::take(&mut dirty.classes);
        for class in &classes {
            self.classes
                .refresh(*class, &world, &self.access, dirty, &mut self.publication);
        }
        let rebased = rebased.iter().flat_map(|identity| self.classes.of(identity));
        for class in rebased.collect::<Vec<_>>().into_iter().chain(classes) {
            self.classes
                .compose(class, &self.audiences, &mut self.publication);
        }
        self.build(dirty);
        self.finish(dirty, change);
    }

    /// Takes a new MeshConfig over.
    fn configure(&mut self, dirty: &mut Dirty, change: &mut Change) {
        if !std::mem::take(&mut dirty.settings) {
            return;
        }
        let Some(new) = self.tables.config.clone() else {
            return;
        };
        let old = std::mem::replace(&mut self.config, new);
        if old.control != self.config.control {
            change.control = Some(self.config.control.clone());
        }
        let same = old.settings == self.config.settings
            && old.permissive == self.config.permissive
            && old.egress == self.config.egress;
        if same {
            return;
        }
        dirty.mesh = true;
        dirty.clients.extend(self.classes.identities().cloned());
        dirty.classes.extend(self.classes.all());
        if old.settings != self.config.settings {
            let depends = |key: &&SlotKey| {
                matches!(
                    key,
                    SlotKey::Cluster(..) | SlotKey::Tracing | SlotKey::ExternalAuthorization
                )
            };
            dirty
                .slots
                .extend(self.publication.slots.keys().filter(depends).cloned());
        }
    }

    /// Brings up to date who may call whom.
    fn permit(&mut self, dirty: &mut Dirty) {
        let key = |namespace: &std::sync::Arc<str>, name: &std::sync::Arc<str>| {
            FactKey::new(FactKind::TrafficTarget, namespace.clone(), name.clone())
        };
        for destination in std::mem::take(&mut dirty.destinations) {
            let routes = RoutesOf {
                tables: &self.tables,
                destination: &destination,
            };
            let targets = self.tables.targets_of(&destination);
            let (new, problems) = access::of(targets, &routes, &self.options.trust_domain);
            let mut by_target = BTreeMap::<_, Vec<Problem>>::new();
            for (target, problem) in problems {
                by_target.entry(target).or_default().push(problem);
            }
            for target in self
                .tables
                .targets_by_destination
                .get(&destination)
                .into_iter()
                .flatten()
            {
                let problems = by_target.remove(target).unwrap_or_default();
                self.diagnostics
                    .set(Stage::Rules, key(&destination.namespace, target), problems);
            }
            let exists = self.tables.targets_of(&destination).next().is_some();
            let old = if exists {
                self.access.insert(destination.clone(), new.clone())
            } else {
                self.access.remove(&destination)
            };
            if old.unwrap_or_default() != new {
                dirty.classes.extend(self.classes.of(&destination));
            }
        }
        for name in std::mem::take(&mut dirty.references) {
            let target = self
                .tables
                .targets
                .get(&name)
                .filter(|_| self.tables.monitored.contains(&name.0));
            let identities = target
                .into_iter()
                .flat_map(|target| target.sources.iter().chain([&target.destination]));
            let problems = identities
                .filter(|identity| self.is_missing(identity))
                .map(|identity| Problem {
                    reason: "ServiceAccountNotFound",
                    message: format!(
                        "there is no service account {} in namespace {}",
                        identity.name, identity.namespace
                    ),
                });
            self.diagnostics
                .set(Stage::References, key(&name.0, &name.1), problems.collect());
        }
    }

    /// Whether a service account is known not to exist: its namespace has accounts, as every namespace does once it is
    /// watched, and it is not among them.
    fn is_missing(&self, identity: &ServiceIdentity) -> bool {
        let accounts = &self.tables.accounts;
        let any = accounts.range((identity.namespace.clone(), "".into())..).next();
        any.is_some_and(|(namespace, _)| *namespace == identity.namespace)
            && !accounts.contains(&(identity.namespace.clone(), identity.name.clone()))
    }

    fn build(&mut self, dirty: &mut Dirty) {
        let materials = Materials {
            services: &self.services,
            config: &self.config,
            trust_domain: &self.options.trust_domain,
            roots: self.roots.as_ref(),
            certificates: &self.certificates,
        };
        for key in std::mem::take(&mut dirty.slots) {
            if self.publication.slots.slot(&key).is_some() {
                self.publication.put(&key, build::resource(&key, &materials));
            }
        }
    }

    fn finish(&mut self, dirty: &mut Dirty, change: &mut Change) {
        let mut classes = std::mem::take(&mut self.publication.classes);
        for holder in std::mem::take(&mut self.publication.holders) {
            classes.extend(self.classes.held_by(&holder));
        }
        change.classes = classes.into_iter().collect();
        for (identity, had) in std::mem::take(&mut dirty.identities) {
            match (had, self.classes.has(&identity)) {
                (false, true) => change.appeared.push(identity),
                (true, false) => change.vanished.push(identity),
                _ => {}
            }
        }
        self.classes.settle(std::mem::take(&mut dirty.freed));
        (change.snapshot, change.recomputed) = self.publication.finish();
    }
}

/// The routes in the namespace of a destination.
struct RoutesOf<'a> {
    tables: &'a Tables,
    destination: &'a ServiceIdentity,
}

impl Routes for RoutesOf<'_> {
    fn group(&self, name: &str) -> Option<&HttpRouteGroup> {
        self.tables
            .groups
            .get(&(self.destination.namespace.clone(), name.into()))
            .map(|group| &**group)
    }

    fn tcp_route(&self, name: &str) -> Option<&TcpRoute> {
        self.tables
            .tcp_routes
            .get(&(self.destination.namespace.clone(), name.into()))
            .map(|route| &**route)
    }
}
