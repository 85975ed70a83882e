//! HTTPRouteGroups: what HTTP requests look like.

use std::{collections::BTreeMap, sync::Arc};

use super::{Diagnostic, Fact, FactKey, FactKind, Problem, excerpt, pattern};
use crate::{
    api::{self, specs::HTTPMatch},
    ir::HttpMatch,
};

/// Most matches of one group, methods of one match, and headers of one match.
const MAX_MATCHES: usize = 1_024;
const MAX_METHODS: usize = 16;
const MAX_HEADERS: usize = 32;
/// Longest method and header name, bytes.
const MAX_TOKEN: usize = 128;

/// An HTTPRouteGroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRouteGroup {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its valid matches by name: one shape for each method, ordered.
    pub matches: BTreeMap<Arc<str>, Vec<HttpMatch>>,
    /// What is wrong with the others: an invalid match harms only itself.
    pub problems: Vec<Problem>,
}

/// Reads an HTTPRouteGroup. Matches that are not valid are left out and told of in its problems.
///
/// # Errors
/// `TooMany` matches.
pub fn from(object: &api::HTTPRouteGroup) -> Result<Fact, Diagnostic> {
    let key = FactKey::of(FactKind::HTTPRouteGroup, &object.metadata);
    if object.spec.matches.len() > MAX_MATCHES {
        let message = format!("more than {MAX_MATCHES} matches; divide it into several groups");
        return Err(Diagnostic::new(key, "TooMany", message));
    }
    let mut matches = BTreeMap::<Arc<str>, Vec<HttpMatch>>::new();
    let mut problems = Vec::new();
    for (index, item) in object.spec.matches.iter().enumerate() {
        let name = excerpt(&item.name);
        match shapes(item) {
            // Matches of one name are alternatives.
            Ok(shapes) => matches
                .entry(item.name.as_str().into())
                .or_default()
                .extend(shapes),
            Err(problem) => problems.push(Problem {
                reason: "InvalidMatch",
                message: format!("spec.matches[{index}] ({name}) grants nothing: {problem}"),
            }),
        }
    }
    for shapes in matches.values_mut() {
        shapes.sort();
        shapes.dedup();
    }
    Ok(Fact::HTTPRouteGroup(HttpRouteGroup {
        namespace: key.namespace,
        name: key.name,
        matches,
        problems,
    }))
}

fn shapes(item: &HTTPMatch) -> Result<Vec<HttpMatch>, String> {
    if item.methods.len() > MAX_METHODS || item.headers.len() > MAX_HEADERS {
        return Err(format!(
            "more than {MAX_METHODS} methods or {MAX_HEADERS} headers"
        ));
    }
    let path = match item.path_regex.as_deref() {
        None | Some("" | ".*") => None,
        Some(path) => {
            pattern::check(path).map_err(|problem| format!("pathRegex {:?} {problem}", excerpt(path)))?;
            Some(Arc::from(path))
        }
    };
    let mut headers = BTreeMap::<Arc<str>, Arc<str>>::new();
    for (name, value) in &item.headers {
        let lower = name.to_ascii_lowercase();
        let name = match &*lower {
            "host" | ":authority" => ":authority",
            other if is_token(other) => other,
            _ => {
                return Err(format!(
                    "headers has the name {:?}, which HTTP does not allow",
                    excerpt(name)
                ));
            }
        };
        pattern::check(value).map_err(|problem| format!("header {name} {:?} {problem}", excerpt(value)))?;
        headers.insert(name.into(), value.as_str().into());
    }
    let mut methods: Vec<Option<Arc<str>>> = Vec::new();
    for method in &item.methods {
        match &**method {
            "*" | "" => methods.push(None),
            method if is_token(method) => methods.push(Some(method.into())),
            method => {
                return Err(format!(
                    "methods has {:?}, which HTTP does not allow",
                    excerpt(method)
                ));
            }
        }
    }
    if methods.is_empty() || methods.contains(&None) {
        methods = vec![None];
    }
    Ok(methods
        .into_iter()
        .map(|method| HttpMatch {
            path: path.clone(),
            method,
            headers: headers.clone(),
        })
        .collect())
}

/// Whether `text` is a token (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    (1..=MAX_TOKEN).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
