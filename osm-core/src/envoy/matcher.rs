//! String, header and path matchers, in their current spelling only.

use osm_proto::envoy::{
    config::route::v3::{HeaderMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier, route_match},
    r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
};

use crate::{facts::pattern, ir::HttpMatch};

/// A path, with its query, that has an escaped slash or backslash before the query.
const ESCAPED_SLASH: &str = "[^?]*%(2[Ff]|5[Cc]).*";

/// Exactly this text.
pub(super) fn exact(text: impl Into<String>) -> StringMatcher {
    matching(MatchPattern::Exact(text.into()))
}

/// Text that ends so.
pub(super) fn suffix(text: impl Into<String>) -> StringMatcher {
    matching(MatchPattern::Suffix(text.into()))
}

/// Text that the regular expression (RE2) matches from end to end.
pub(super) fn regex(expression: &str) -> StringMatcher {
    matching(MatchPattern::SafeRegex(regex_matcher(expression)))
}

fn matching(pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(pattern),
        ignore_case: false,
    }
}

/// RE2 is Envoy's only engine; naming it is deprecated.
fn regex_matcher(expression: &str) -> RegexMatcher {
    RegexMatcher {
        regex: expression.to_owned(),
        engine_type: None,
    }
}

/// A header (or `:method`, `:authority`) whose value matches.
pub(super) fn header(name: &str, value: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(value)),
        ..Default::default()
    }
}

/// A header that is there, whatever its value.
pub(super) fn header_present(name: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    }
}

/// Every request.
pub(super) fn any_request() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    }
}

/// Paths without escaped slashes and backslashes.
fn plain_path() -> HeaderMatcher {
    HeaderMatcher {
        invert_match: true,
        ..header(":path", regex(ESCAPED_SLASH))
    }
}

/// The requests of this shape. Envoy compares the path without the query, from end to end.
///
/// An application that decodes `/public/..%2Fadmin` serves `/admin`. So `/public/.*` does not match it; an expression
/// that speaks of escaped slashes matches what it says.
pub(super) fn request(shape: &HttpMatch) -> RouteMatch {
    let method = shape
        .method
        .as_ref()
        .map(|method| header(":method", exact(&**method)));
    let headers = shape
        .headers
        .iter()
        .map(|(name, expression)| header(name, regex(expression)));
    let path = shape.path.as_deref();
    let plain = path
        .is_some_and(|path| !pattern::has_escaped_slash(path))
        .then(plain_path);
    let path_specifier = path.map_or_else(
        || any_request().path_specifier,
        |path| Some(route_match::PathSpecifier::SafeRegex(regex_matcher(path))),
    );
    RouteMatch {
        path_specifier,
        headers: method.into_iter().chain(headers).chain(plain).collect(),
        ..Default::default()
    }
}
