//! What the sidecar writes to its standard output: one JSON line for a request, a TCP connection, or a refusal.

use osm_proto::envoy::{
    config::{
        accesslog::v3::{
            AccessLog, AccessLogFilter, ResponseFlagFilter, access_log::ConfigType,
            access_log_filter::FilterSpecifier,
        },
        core::v3::{SubstitutionFormatString, substitution_format_string::Format},
    },
    extensions::access_loggers::stream::v3::{StdoutAccessLog, stdout_access_log::AccessLogFormat},
};
use prost_types::{Struct, Value, value::Kind};

use super::parts::any;

/// The fields and the operators they are made of. The names are what users' log queries match on.
const FIELDS: [(&str, &str); 19] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("start_time", "%START_TIME%"),
    ("time_to_first_byte", "%RESPONSE_DURATION%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];

/// Logs every request of an HTTP connection manager, or every connection of a TCP proxy.
pub(super) fn access_log() -> AccessLog {
    let text = |operator: &str| Value {
        kind: Some(Kind::StringValue(operator.to_owned())),
    };
    let fields = FIELDS
        .iter()
        .map(|(name, operator)| ((*name).to_owned(), text(operator)))
        .collect();
    let format = SubstitutionFormatString {
        format: Some(Format::JsonFormat(Struct { fields })),
        ..Default::default()
    };
    let stdout = StdoutAccessLog {
        access_log_format: Some(AccessLogFormat::LogFormat(format)),
    };
    AccessLog {
        name: "envoy.access_loggers.stdout".to_owned(),
        filter: None,
        config_type: Some(ConfigType::TypedConfig(any(&stdout))),
    }
}

/// Logs the connections a listener has no filter chain for (`NR`), which nothing else would show.
pub(super) fn refusal_log() -> AccessLog {
    let no_chain = ResponseFlagFilter {
        flags: vec!["NR".to_owned()],
    };
    AccessLog {
        filter: Some(AccessLogFilter {
            filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(no_chain)),
        }),
        ..access_log()
    }
}
