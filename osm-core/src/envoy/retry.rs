//! What is tried again, where, and how often: the client half of "no request fails because a pod died".
//!
//! Invariant: a request that an application may have seen is never sent twice, unless its method is one that RFC 9110
//! (9.2.1) calls safe.
//!
//! The two halves:
//! * The inbound side marks its own 503: with [`UNSENT_HEADER`] when it could not connect to the application (the pod's
//!   sidecar still runs, its application does not), so that the request was never sent; with [`CUT_HEADER`] when the
//!   application ended before it answered, at the request's first attempt.
//! * The outbound side sends a request again, to another endpoint, when it could not connect, the connection broke
//!   before the request was written, the server refused the stream unprocessed, or the answer is marked as unsent; a
//!   safe one also when it is marked as cut.

use osm_proto::envoy::{
    config::{
        accesslog::v3::{
            AccessLogFilter, AndFilter, HeaderFilter, ResponseFlagFilter, access_log_filter::FilterSpecifier,
        },
        core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
        route::v3::{
            HeaderMatcher, RetryPolicy,
            retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType},
        },
    },
    extensions::{
        filters::network::http_connection_manager::v3::{LocalReplyConfig, ResponseMapper},
        retry::host::previous_hosts::v3::PreviousHostsPredicate,
    },
};

use super::{
    matcher::{exact, header, header_present, regex},
    parts::{any, milliseconds},
};

/// On a sidecar's answer: the request was not sent to the application. Taken off before the client sees it.
pub(super) const UNSENT_HEADER: &str = "x-osm-unsent";

/// On a sidecar's answer: the application ended without an answer. Taken off before the client sees it.
pub(super) const CUT_HEADER: &str = "x-osm-cut";

/// On a request: which attempt it is, from 1. Written by the client's sidecar, whatever the client wrote.
const ATTEMPT_HEADER: &str = "x-envoy-attempt-count";

/// How often a request or a connection is tried on other endpoints. Each endpoint that is gone costs one attempt, and
/// is ejected after three; five outlast a service that loses most of its endpoints at once.
pub(super) const RETRIES: u32 = 5;

/// Retries of any request: only of what was certainly not processed.
pub(super) fn unsent() -> RetryPolicy {
    policy(
        "connect-failure,refused-stream,reset-before-request,retriable-headers",
        &[UNSENT_HEADER],
    )
}

/// Retries of safe requests: also of those whose connection broke before any of the answer came, as happens when a
/// pod is killed, or its application alone. The latter once only, so that one deadly request does not walk through all
/// endpoints.
pub(super) fn safe() -> RetryPolicy {
    policy(
        "connect-failure,refused-stream,reset,retriable-headers",
        &[UNSENT_HEADER, CUT_HEADER],
    )
}

/// The methods of requests that [`safe`] is for.
pub(super) fn safe_methods() -> HeaderMatcher {
    header(":method", regex("GET|HEAD|OPTIONS"))
}

fn policy(retry_on: &str, marks: &[&str]) -> RetryPolicy {
    let previous_hosts = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&PreviousHostsPredicate {}))),
    };
    let retries = RETRIES;
    #[cfg(feature = "sabotage")]
    let retries = if crate::sabotage::Fault::NoRetries.is_on() {
        0
    } else {
        retries
    };
    RetryPolicy {
        retry_on: retry_on.to_owned(),
        num_retries: Some(retries),
        retriable_headers: marks.iter().copied().map(header_present).collect(),
        // Ask the load balancer again, up to so many times, while it names an endpoint that already failed.
        retry_host_predicate: vec![previous_hosts],
        host_selection_retry_max_attempts: 5,
        // The next attempt goes elsewhere, so there is little to wait for.
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(milliseconds(5)),
            max_interval: Some(milliseconds(100)),
        }),
        ..Default::default()
    }
}

/// Marks the 503 of a connection to the application that could not be made (`UF`), and of one that ended before an
/// answer came (`UC`).
pub(super) fn marks() -> LocalReplyConfig {
    let first_attempt = FilterSpecifier::HeaderFilter(HeaderFilter {
        header: Some(header(ATTEMPT_HEADER, exact("1"))),
    });
    let cut = FilterSpecifier::AndFilter(AndFilter {
        filters: [ended_with("UC"), first_attempt]
            .map(|filter| AccessLogFilter {
                filter_specifier: Some(filter),
            })
            .into(),
    });
    LocalReplyConfig {
        mappers: vec![mark(ended_with("UF"), UNSENT_HEADER), mark(cut, CUT_HEADER)],
        body_format: None,
    }
}

fn ended_with(flag: &str) -> FilterSpecifier {
    FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter {
        flags: vec![flag.to_owned()],
    })
}

fn mark(replies: FilterSpecifier, name: &str) -> ResponseMapper {
    let marker = HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: "true".to_owned(),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    };
    ResponseMapper {
        filter: Some(AccessLogFilter {
            filter_specifier: Some(replies),
        }),
        headers_to_add: vec![marker],
        ..Default::default()
    }
}
