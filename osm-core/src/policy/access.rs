//! Who may call the workloads of one service account, in SMI mode.
//!
//! What the TrafficTargets of a destination mean together (SMI traffic access v1alpha3; deny by default):
//!
//! - A TCP port lets connections in by TCPRoutes only. A target with HTTP rules alone opens no TCP port.
//! - An HTTP port lets a connection in by either kind of rule. Requests pass by HTTP rules only: where a TCPRoute alone
//!   let the connection in, no route matches and the answer is 404, as in the original.
//! - A rule that names no matches of an HTTPRouteGroup means all of them.
//! - What names something that does not exist grants nothing, and the rest of the target counts.

use std::{collections::BTreeSet, sync::Arc};

use super::request::{self, Grants};
use crate::{
    facts::{HttpRouteGroup, Problem, TcpRoute, TrafficTarget, traffic_target::Rule},
    identity::TrustDomain,
    ir::{ConnectionAccess, ConnectionGrant, InboundRoute},
};

/// Most request shapes one destination is given.
pub const MAX_ROUTES: usize = 1_024;

/// What a destination's TrafficTargets allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Who may connect to its HTTP ports.
    pub http: ConnectionAccess,
    /// Who may connect to its TCP ports.
    pub tcp: ConnectionAccess,
    /// Which requests may be sent by whom, in matching order.
    pub routes: Vec<InboundRoute>,
}

/// Finds the routes that rules refer to, by name, in the destination's namespace.
pub trait Routes {
    /// An HTTPRouteGroup.
    fn group(&self, name: &str) -> Option<&HttpRouteGroup>;
    /// A TCPRoute.
    fn tcp_route(&self, name: &str) -> Option<&TcpRoute>;
}

/// What the `targets` of one destination, ordered by name, allow; and what is wrong with which target.
pub fn of<'a>(
    targets: impl Iterator<Item = &'a TrafficTarget>,
    routes: &impl Routes,
    trust_domain: &TrustDomain,
) -> (Access, Vec<(Arc<str>, Problem)>) {
    let mut access = Access::default();
    let mut requests = Grants::new();
    let mut problems = Vec::new();
    for target in targets {
        let principals: BTreeSet<String> = target
            .sources
            .iter()
            .map(|source| source.principal(trust_domain))
            .collect();
        let mut complain =
            |reason, message| problems.push((target.name.clone(), Problem { reason, message }));
        let mut shapes = BTreeSet::new();
        let mut ports: Option<Ports> = None;
        for rule in &target.rules {
            match rule {
                Rule::Http { group: name, matches } => match routes.group(name) {
                    None => complain(
                        "RouteNotFound",
                        format!("there is no HTTPRouteGroup {name}: the rule grants nothing"),
                    ),
                    Some(group) if matches.is_empty() => shapes.extend(group.matches.values().flatten()),
                    Some(group) => {
                        for item in matches {
                            match group.matches.get(item) {
                                Some(found) => shapes.extend(found),
                                None => complain(
                                    "MatchNotFound",
                                    format!(
                                        "HTTPRouteGroup {name} has no valid match {item}: it grants nothing"
                                    ),
                                ),
                            }
                        }
                    }
                },
                Rule::Tcp { route: name } => match routes.tcp_route(name) {
                    None => complain(
                        "RouteNotFound",
                        format!("there is no TCPRoute {name}: the rule grants nothing"),
                    ),
                    Some(route) => ports.get_or_insert_default().add(&route.ports),
                },
            }
        }
        if principals.is_empty() {
            continue;
        }
        let policy = format!("{}/{}", target.namespace, target.name);
        let grant = |ports: Vec<u16>| ConnectionGrant {
            principals: principals.iter().cloned().collect(),
            ports,
        };
        if let Some(ports) = &ports {
            access.tcp.grants.insert(policy.clone(), grant(ports.listed()));
        }
        if !shapes.is_empty() {
            access.http.grants.insert(policy, grant(Vec::new()));
        } else if let Some(ports) = &ports {
            access.http.grants.insert(policy, grant(ports.listed()));
        }
        for shape in shapes {
            if requests.len() >= MAX_ROUTES && !requests.contains_key(shape) {
                complain(
                    "TooManyRoutes",
                    format!(
                        "{} has {MAX_ROUTES} routes already: the rest grants nothing",
                        target.destination
                    ),
                );
                break;
            }
            requests
                .entry(shape.clone())
                .or_default()
                .extend(principals.iter().cloned());
        }
    }
    let routes = request::ordered(requests).into_iter();
    access.routes = routes
        .map(|(request, principals)| InboundRoute {
            request,
            principals: Some(principals.into_iter().collect()),
        })
        .collect();
    (access, problems)
}

/// The ports of a target's TCPRoutes together.
#[derive(Default)]
struct Ports {
    any: bool,
    these: BTreeSet<u16>,
}

impl Ports {
    fn add(&mut self, ports: &[u16]) {
        self.any |= ports.is_empty();
        self.these.extend(ports);
    }

    /// As a grant has them: any when empty.
    fn listed(&self) -> Vec<u16> {
        if self.any {
            Vec::new()
        } else {
            self.these.iter().copied().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{identity::ServiceIdentity, ir::HttpMatch};

    #[derive(Default)]
    struct Known {
        groups: BTreeMap<String, HttpRouteGroup>,
        tcp: BTreeMap<String, TcpRoute>,
    }

    impl Routes for Known {
        fn group(&self, name: &str) -> Option<&HttpRouteGroup> {
            self.groups.get(name)
        }
        fn tcp_route(&self, name: &str) -> Option<&TcpRoute> {
            self.tcp.get(name)
        }
    }

    fn path(path: &str) -> HttpMatch {
        HttpMatch {
            path: Some(path.into()),
            ..HttpMatch::default()
        }
    }

    /// Group `g` has matches `buy` and `sell`; TCPRoute `any` has no ports, `db` has 3306 and 3307.
    fn known() -> Known {
        let matches = BTreeMap::from([
            ("buy".into(), vec![path("/buy")]),
            ("sell".into(), vec![path("/sell")]),
        ]);
        let group = HttpRouteGroup {
            namespace: "s".into(),
            name: "g".into(),
            matches,
            problems: Vec::new(),
        };
        let tcp = |name: &str, ports: &[u16]| TcpRoute {
            namespace: "s".into(),
            name: name.into(),
            ports: ports.into(),
        };
        Known {
            groups: BTreeMap::from([("g".to_owned(), group)]),
            tcp: BTreeMap::from([
                ("any".to_owned(), tcp("any", &[])),
                ("db".to_owned(), tcp("db", &[3306, 3307])),
            ]),
        }
    }

    fn target(name: &str, sources: &[&str], rules: Vec<Rule>) -> TrafficTarget {
        TrafficTarget {
            namespace: "s".into(),
            name: name.into(),
            destination: ServiceIdentity::new("s", "web"),
            sources: sources
                .iter()
                .map(|source| ServiceIdentity::new("c", *source))
                .collect(),
            rules,
        }
    }

    fn http(group: &str, matches: &[&str]) -> Rule {
        Rule::Http {
            group: group.into(),
            matches: matches.iter().map(|name| (*name).into()).collect(),
        }
    }

    fn tcp(route: &str) -> Rule {
        Rule::Tcp { route: route.into() }
    }

    /// HTTP grants, TCP grants and routes as text.
    fn read(targets: &[TrafficTarget]) -> (String, String, String, Vec<&'static str>) {
        let (access, problems) = of(targets.iter(), &known(), &TrustDomain::default());
        let short = |principal: &String| principal.split('.').next().unwrap_or_default().to_owned();
        let grants = |access: &ConnectionAccess| {
            let one = |(name, grant): (&String, &ConnectionGrant)| {
                format!(
                    "{name}:{}:{:?}",
                    grant.principals.iter().map(short).collect::<Vec<_>>().join("+"),
                    grant.ports
                )
            };
            access.grants.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        let routes = access.routes.iter().map(|route| {
            let who = route
                .principals
                .as_ref()
                .expect("named")
                .iter()
                .map(short)
                .collect::<Vec<_>>()
                .join("+");
            format!("{}:{who}", route.request.path.as_deref().unwrap_or("*"))
        });
        let reasons = problems.into_iter().map(|(_, problem)| problem.reason).collect();
        (
            grants(&access.http),
            grants(&access.tcp),
            routes.collect::<Vec<_>>().join(" "),
            reasons,
        )
    }

    #[test]
    fn rules_mean_what_smi_says() {
        let table = [
            // Nothing: nobody.
            (vec![], ("", "", "", vec![])),
            // HTTP rules let HTTP connections in and open no TCP port.
            (
                vec![target("t", &["a"], vec![http("g", &["buy"])])],
                ("s/t:a:[]", "", "/buy:a", vec![]),
            ),
            // No matches named: all of them.
            (
                vec![target("t", &["a"], vec![http("g", &[])])],
                ("s/t:a:[]", "", "/buy:a /sell:a", vec![]),
            ),
            // A TCPRoute opens TCP ports; HTTP ports let the connection in and answer 404.
            (
                vec![target("t", &["a"], vec![tcp("db")])],
                ("s/t:a:[3306, 3307]", "s/t:a:[3306, 3307]", "", vec![]),
            ),
            (
                vec![target("t", &["a"], vec![tcp("db"), tcp("any")])],
                ("s/t:a:[]", "s/t:a:[]", "", vec![]),
            ),
            (
                vec![target("t", &["a"], vec![http("g", &["buy"]), tcp("db")])],
                ("s/t:a:[]", "s/t:a:[3306, 3307]", "/buy:a", vec![]),
            ),
            // What is missing grants nothing and harms nothing else.
            (
                vec![target("t", &["a"], vec![http("none", &[])])],
                ("", "", "", vec!["RouteNotFound"]),
            ),
            (
                vec![target("t", &["a"], vec![tcp("none")])],
                ("", "", "", vec!["RouteNotFound"]),
            ),
            (
                vec![target(
                    "t",
                    &["a"],
                    vec![http("g", &["none", "sell"]), tcp("none")],
                )],
                ("s/t:a:[]", "", "/sell:a", vec!["MatchNotFound", "RouteNotFound"]),
            ),
            // No sources: nobody.
            (
                vec![target("t", &[], vec![http("g", &[]), tcp("any")])],
                ("", "", "", vec![]),
            ),
            // Several targets add up, by equal route.
            (
                vec![
                    target("t", &["a"], vec![http("g", &[])]),
                    target("u", &["b"], vec![http("g", &["buy"])]),
                ],
                ("s/t:a:[] s/u:b:[]", "", "/buy:a+b /sell:a", vec![]),
            ),
        ];
        for (targets, (http, tcp, routes, problems)) in table {
            assert_eq!(
                read(&targets),
                (http.to_owned(), tcp.to_owned(), routes.to_owned(), problems),
                "{targets:?}"
            );
        }
    }

    #[test]
    fn routes_are_bounded() {
        let mut known = known();
        let matches = (0..MAX_ROUTES + 5)
            .map(|n| (n.to_string().into(), vec![path(&format!("/{n}"))]))
            .collect();
        known.groups.insert(
            "big".to_owned(),
            HttpRouteGroup {
                namespace: "s".into(),
                name: "big".into(),
                matches,
                problems: vec![],
            },
        );
        let targets = [target("t", &["a"], vec![http("big", &[])])];
        let (access, problems) = of(targets.iter(), &known, &TrustDomain::default());
        assert_eq!(
            (access.routes.len(), problems[0].1.reason),
            (MAX_ROUTES, "TooManyRoutes")
        );
    }
}
