//! Shapes of requests: which of two is the wider, and in what order they are tried.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use crate::{facts::pattern, ir::HttpMatch};

/// Who may send requests of which shape.
pub type Grants = BTreeMap<HttpMatch, BTreeSet<String>>;

/// Orders grants so that the first shape a request has decides, and decides as all of them together would.
///
/// Envoy takes the first route that matches; SMI grants add up. So a narrower shape comes before a wider one, and
/// whoever may send the wider may send the narrower. Where two shapes overlap and neither is known to hold the other
/// (two different expressions), the first in order decides.
pub fn ordered(grants: Grants) -> Vec<(HttpMatch, BTreeSet<String>)> {
    let mut expressions = BTreeMap::new();
    if grants.len() > 1 {
        for path in grants.keys().filter_map(|shape| shape.path.as_deref()) {
            if !pattern::is_literal(path)
                && let Some(expression) = pattern::whole(path)
            {
                expressions.insert(path.to_owned(), expression);
            }
        }
    }
    let mut ordered: Vec<_> = grants.into_iter().collect();
    ordered.sort_by(|(a, _), (b, _)| breadth(a).cmp(&breadth(b)).then_with(|| a.cmp(b)));
    for narrow in 0..ordered.len() {
        // Whatever is wider comes later.
        let (head, tail) = ordered.split_at_mut(narrow + 1);
        let (shape, principals) = &mut head[narrow];
        for (wider, others) in tail {
            if !others.is_subset(principals) && covers(wider, shape, &expressions) {
                principals.extend(others.iter().cloned());
            }
        }
    }
    ordered
}

/// Grows with how much a shape lets through, where that can be told; a shape that [`covers`] another is not less broad.
fn breadth(shape: &HttpMatch) -> (usize, bool, u8) {
    let path = match shape.path.as_deref() {
        Some(path) if pattern::is_literal(path) => 0,
        Some(_) => 1,
        None => 2,
    };
    (usize::MAX - shape.headers.len(), shape.method.is_none(), path)
}

/// Whether every request of shape `narrow` is known to be of shape `wide` as well.
fn covers(wide: &HttpMatch, narrow: &HttpMatch, expressions: &BTreeMap<String, Regex>) -> bool {
    let method = wide.method.is_none() || wide.method == narrow.method;
    let headers = wide
        .headers
        .iter()
        .all(|(name, value)| narrow.headers.get(name) == Some(value));
    let path = || match (wide.path.as_deref(), narrow.path.as_deref()) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => {
            let expression = || {
                expressions
                    .get(wide)
                    .is_some_and(|expression| expression.is_match(narrow))
            };
            // An expression is about escaped slashes only if it speaks of them (see `HttpMatch::path`).
            let escapes = pattern::has_escaped_slash(wide) || !pattern::has_escaped_slash(narrow);
            wide == narrow || (pattern::is_literal(narrow) && escapes && expression())
        }
    };
    method && headers && path()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(path: &str, method: &str, headers: &[&str]) -> HttpMatch {
        let text = |text: &str| (!text.is_empty()).then(|| text.into());
        let headers = headers.iter().map(|name| ((*name).into(), "x".into())).collect();
        HttpMatch {
            path: text(path),
            method: text(method),
            headers,
        }
    }

    fn order(grants: &[(HttpMatch, &str)]) -> Vec<(HttpMatch, String)> {
        let mut all = Grants::new();
        for (shape, principal) in grants {
            all.entry(shape.clone())
                .or_default()
                .insert((*principal).to_owned());
        }
        let join = |principals: BTreeSet<String>| principals.into_iter().collect::<Vec<_>>().join("");
        ordered(all)
            .into_iter()
            .map(|(shape, principals)| (shape, join(principals)))
            .collect()
    }

    #[test]
    fn the_narrow_comes_first_and_holds_the_wide() {
        let (any, get, buy) = (shape("", "", &[]), shape("", "GET", &[]), shape("/buy", "", &[]));
        let (some, header) = (shape("/b.*", "", &[]), shape("", "", &["h"]));
        for (grants, expected) in [
            (
                vec![(any.clone(), "a"), (buy.clone(), "b")],
                vec![(buy.clone(), "ab"), (any.clone(), "a")],
            ),
            (
                vec![(some.clone(), "a"), (buy.clone(), "b")],
                vec![(buy.clone(), "ab"), (some.clone(), "a")],
            ),
            (
                vec![(get.clone(), "a"), (any.clone(), "b")],
                vec![(get.clone(), "ab"), (any.clone(), "b")],
            ),
            (
                vec![(header.clone(), "a"), (any.clone(), "b")],
                vec![(header.clone(), "ab"), (any.clone(), "b")],
            ),
            (
                vec![(shape("/c", "", &[]), "a"), (some.clone(), "b")],
                vec![(shape("/c", "", &[]), "a"), (some, "b")],
            ),
            (
                vec![(get.clone(), "a"), (buy.clone(), "b")],
                vec![(get.clone(), "a"), (buy.clone(), "b")],
            ),
            (
                vec![(any.clone(), "a"), (any.clone(), "b")],
                vec![(any.clone(), "ab")],
            ),
            // `/e.*` does not match `/e%2Ff`, which every request of no particular path does.
            (
                vec![
                    (shape("/e%2Ff", "", &[]), "a"),
                    (shape("/e.*", "", &[]), "b"),
                    (shape("/e.*|%2f", "", &[]), "c"),
                    (any.clone(), "d"),
                ],
                vec![
                    (shape("/e%2Ff", "", &[]), "acd"),
                    (shape("/e.*", "", &[]), "bd"),
                    (shape("/e.*|%2f", "", &[]), "cd"),
                    (any, "d"),
                ],
            ),
        ] {
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(shape, names)| (shape, names.to_owned()))
                .collect();
            assert_eq!(order(&grants), expected);
        }
    }

    #[test]
    fn nothing_narrower_comes_after_what_covers_it() {
        let paths = ["", "/a", "/ab", "/a.*"];
        let mut shapes = Vec::new();
        for path in paths {
            for method in ["", "GET"] {
                for headers in [&[][..], &["h"], &["h", "i"]] {
                    shapes.push((shape(path, method, headers), "p"));
                }
            }
        }
        let ordered = order(&shapes);
        let expressions = BTreeMap::from([("/a.*".to_owned(), pattern::whole("/a.*").unwrap())]);
        for (index, (wide, _)) in ordered.iter().enumerate() {
            for (narrow, _) in &ordered[index + 1..] {
                assert!(!covers(wide, narrow, &expressions), "{wide:?} before {narrow:?}");
            }
        }
    }
}
