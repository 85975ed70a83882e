//! Logging: one JSON object a line, with the original's fields, at a level that changes live.
//!
//! Fields: `level`, `component` (the module that speaks), `time` (RFC 3339, UTC), `message`, then the event's own.
//! `OSM_HUMAN_DEBUG_LOG=true` gives text for people instead. Invariant: below `warn`, only the mesh's own modules are
//! heard, so that no library logs headers, tokens or bodies for us (law 11).

use std::{fmt, str::FromStr};

use tracing::{Event, Level, Subscriber, field::Field, level_filters::LevelFilter};
use tracing_subscriber::{
    Registry,
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

/// The environment variable that switches to text for people when it is `true`.
pub const HUMAN: &str = "OSM_HUMAN_DEBUG_LOG";

/// The levels of the original's `--verbosity` and `osmLogLevel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbosity(LevelFilter);

/// Not a level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log level: use disabled, trace, debug, info, warn, error, fatal or panic")]
pub struct UnknownLevel(String);

impl FromStr for Verbosity {
    type Err = UnknownLevel;

    /// `fatal` and `panic` are the original's names for what is an error here.
    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        Ok(Self(match text.to_ascii_lowercase().as_str() {
            "disabled" => LevelFilter::OFF,
            "trace" => LevelFilter::TRACE,
            "debug" => LevelFilter::DEBUG,
            "info" => LevelFilter::INFO,
            "warn" => LevelFilter::WARN,
            "error" | "fatal" | "panic" => LevelFilter::ERROR,
            _ => return Err(UnknownLevel(text.chars().take(64).collect())),
        }))
    }
}

impl Verbosity {
    fn targets(self) -> Targets {
        Targets::new()
            .with_default(self.0.min(LevelFilter::WARN))
            .with_target("osm", self.0)
    }
}

/// Changes the level of a running process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(reload::Handle<Targets, Registry>);

impl Handle {
    /// Logs at `verbosity` from now on.
    pub fn set(&self, verbosity: Verbosity) {
        // Fails only when the subscriber is gone, and then nobody logs any more.
        let _ = self.0.reload(verbosity.targets());
    }
}

/// Installs the process's logger (to standard error) and panic hook. Call once, first thing in `main`; in a process
/// that already has a logger, that one stays.
pub fn init(verbosity: Verbosity) -> Handle {
    let (filter, handle) = reload::Layer::new(verbosity.targets());
    let human = std::env::var(HUMAN).is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let _ = if human {
        registry.with(layer).try_init()
    } else {
        registry.with(layer.event_format(Json)).try_init()
    };
    std::panic::set_hook(Box::new(|panic| {
        // The message only: what was being worked on may be secret.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(
            place,
            "a task panicked: {}",
            panic.payload_as_str().unwrap_or("no message")
        );
    }));
    Handle(handle)
}

/// One JSON object a line.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::TRACE => "trace",
            Level::DEBUG => "debug",
            Level::INFO => "info",
            Level::WARN => "warn",
            Level::ERROR => "error",
        };
        let mut fields = serde_json::Map::new();
        event.record(&mut Visitor(&mut fields));
        let mut line = serde_json::Map::new();
        line.insert("level".into(), level.into());
        line.insert("component".into(), metadata.target().into());
        line.insert("time".into(), jiff::Timestamp::now().to_string().into());
        line.insert("message".into(), fields.remove("message").unwrap_or_default());
        for (name, value) in fields {
            line.entry(name).or_insert(value);
        }
        let spans = context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root());
        let spans: Vec<String> = spans
            .map(|span| match span.extensions().get::<FormattedFields<N>>() {
                Some(fields) if !fields.is_empty() => format!("{}{{{fields}}}", span.name()),
                _ => span.name().to_owned(),
            })
            .collect();
        if !spans.is_empty() {
            line.insert("spans".into(), spans.join(":").into());
        }
        writeln!(writer, "{}", serde_json::Value::Object(line))
    }
}

/// Longest text of one field; what a peer sends may end up in one.
const MAX_FIELD: usize = 4_096;

struct Visitor<'a>(&'a mut serde_json::Map<String, serde_json::Value>);

impl Visitor<'_> {
    fn put(&mut self, field: &Field, value: impl Into<serde_json::Value>) {
        self.0
            .insert(field.name().trim_start_matches("r#").to_owned(), value.into());
    }
}

impl tracing::field::Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let end = value.floor_char_boundary(MAX_FIELD);
        self.put(field, &value[..end]);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_json_object_with_the_originals_fields() {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Json)
            .with_writer(move || writer.clone());
        let verbosity: Verbosity = "info".parse().unwrap();
        let subscriber = tracing_subscriber::registry()
            .with(verbosity.targets())
            .with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(pods = 3, name = "x\"\n\u{1b}[31m", "hello");
            tracing::debug!("not heard");
            tracing::info!(target: "kube_client", "not heard either");
            tracing::warn!(target: "kube_client", "heard");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(lines[0]["level"], "info");
        assert_eq!(lines[0]["component"], module_path!());
        assert_eq!(lines[0]["message"], "hello");
        assert_eq!(lines[0]["pods"], 3);
        assert_eq!(lines[0]["name"], "x\"\n\u{1b}[31m");
        assert!(
            lines[0]["time"]
                .as_str()
                .unwrap()
                .parse::<jiff::Timestamp>()
                .is_ok()
        );
        assert_eq!(lines[1]["component"], "kube_client");
    }

    #[test]
    fn levels_have_the_originals_names() {
        for level in [
            "disabled", "trace", "debug", "info", "warn", "error", "fatal", "panic", "INFO",
        ] {
            assert!(level.parse::<Verbosity>().is_ok(), "{level}");
        }
        assert!("loud".parse::<Verbosity>().is_err());
    }
}
