use std::{collections::VecDeque, sync::Arc};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    api::{ListParams, ObjectList, WatchParams},
    core::Status,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use tokio::time::timeout;

use super::{guarded::Guarded, *};
use crate::health::Health;

/// What the server does at the next question; after the last one it is silent.
enum Answer {
    Page(Value),
    Refuse(u16),
    /// These events, then the end.
    Ends(Vec<Value>),
    /// These events, then silence.
    Hangs(Vec<Value>),
}

#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

fn refusal(code: u16) -> kube::Error {
    let message = format!("status {code}");
    kube::Error::Api(Box::new(Status {
        code,
        message,
        ..Status::default()
    }))
}

impl Source for Script {
    type Object = ConfigMap;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Guarded<ConfigMap>>> {
        self.asked.lock().push(format!(
            "list {}",
            params.continue_token.as_deref().unwrap_or("-")
        ));
        let next = self.answers.lock().pop_front();
        match next {
            Some(Answer::Page(page)) => guarded::decode_page(&page.to_string()),
            Some(Answer::Refuse(code)) => Err(refusal(code)),
            _ => std::future::pending().await,
        }
    }

    async fn watch(&self, params: &WatchParams, version: &str) -> kube::Result<source::Stream<ConfigMap>> {
        let kind = if params.send_initial_events {
            "stream"
        } else {
            "watch"
        };
        self.asked.lock().push(format!("{kind} {version}"));
        let next = self.answers.lock().pop_front();
        let (events, hangs) = match next {
            Some(Answer::Ends(events)) => (events, false),
            Some(Answer::Refuse(code)) => return Err(refusal(code)),
            Some(Answer::Hangs(events)) => (events, true),
            _ => (Vec::new(), true),
        };
        // Through text, as they come from a server.
        let events = events
            .into_iter()
            .map(|event| guarded::decode_event(event.to_string().as_bytes()));
        let events = stream::iter(events.collect::<Vec<_>>());
        Ok(if hangs {
            events.chain(stream::pending()).boxed()
        } else {
            events.boxed()
        })
    }
}

fn object(name: &str, version: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": version.to_string()}})
}

fn bad(name: &str, version: u64) -> Value {
    let mut object = object(name, version);
    object["data"] = json!({"key": 5});
    object
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn bookmark(version: u64, end: bool) -> Value {
    let annotations = if end {
        json!({"k8s.io/initial-events-end": "true"})
    } else {
        json!({})
    };
    event(
        "BOOKMARK",
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"resourceVersion": version.to_string(), "annotations": annotations}}),
    )
}

fn error(code: u16) -> Value {
    event(
        "ERROR",
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": "expired", "reason": "Expired", "code": code}),
    )
}

/// Plays the script and returns the events as words, the questions asked, and whether it became ready.
async fn play(answers: Vec<Answer>, expected: usize, optional: bool) -> (Vec<String>, Vec<String>, bool) {
    let script = Script::default();
    script.answers.lock().extend(answers);
    let health = Health::new();
    let synced = health.condition("synced");
    let (sink, mut events) = mpsc::channel(1);
    let milli = Duration::from_millis(1);
    let times = Times {
        silence: 60 * milli,
        list: 60 * milli,
        backoff: (milli, 4 * milli),
    };
    let mut watch = Watch {
        times,
        ..Watch::over(script.clone(), "configmaps")
    };
    watch.optional = optional;
    let name = |map: ConfigMap| map.metadata.name.unwrap();
    let stop = CancellationToken::new();
    let run = watch.run(
        name,
        |event| event,
        sink,
        synced,
        WatchMetrics::default(),
        stop.clone(),
    );
    let mut seen = Vec::new();
    let read = async {
        while seen.len() < expected {
            let event = timeout(Duration::from_secs(10), events.recv())
                .await
                .expect("an event")
                .unwrap();
            seen.push(match event {
                Event::Reset { objects, malformed } => {
                    let malformed: Vec<_> = malformed.iter().map(|bad| format!("!{}", bad.key)).collect();
                    format!("reset {}{}", objects.join(","), malformed.join(","))
                }
                Event::Upsert(name) => format!("upsert {name}"),
                Event::Remove(key) => format!("remove {key}"),
                Event::Malformed(bad) => format!("malformed {}: {}", bad.key, bad.error),
            });
        }
        tokio::time::sleep(milli).await;
        stop.cancel();
    };
    tokio::join!(run, read);
    let asked = script.asked.lock().clone();
    (seen, asked, health.is_ready())
}

#[tokio::test]
async fn a_streamed_list_then_changes_and_again_from_where_it_broke() {
    let (seen, asked, ready) = play(
        vec![
            Answer::Ends(vec![
                event("ADDED", object("a", 3)),
                event("ADDED", bad("b", 4)),
                event("ADDED", object("c", 5)),
                bookmark(7, true),
            ]),
            Answer::Ends(vec![
                event("MODIFIED", object("a", 8)),
                event("MODIFIED", bad("c", 9)),
                bookmark(12, false),
            ]),
            Answer::Refuse(500),
            Answer::Hangs(vec![event("DELETED", bad("b", 13))]),
        ],
        4,
        false,
    )
    .await;
    assert_eq!(seen[..2], ["reset a,c!ns/b".to_owned(), "upsert a".to_owned()]);
    assert!(
        seen[2].starts_with("malformed ns/c: invalid type: integer `5`"),
        "{}",
        seen[2]
    );
    assert_eq!(seen[3], "remove ns/b");
    assert_eq!(asked[..4], ["stream ", "watch 7", "watch 12", "watch 12"]);
    assert!(ready);
}

#[tokio::test]
async fn a_version_that_expired_is_listed_again() {
    let list = |version| Answer::Ends(vec![event("ADDED", object("a", 1)), bookmark(version, true)]);
    let answers = vec![
        list(5),
        Answer::Ends(vec![error(410)]),
        list(20),
        Answer::Refuse(410),
        list(30),
    ];
    let (seen, asked, _) = play(answers, 3, false).await;
    assert_eq!(seen, ["reset a"; 3]);
    assert_eq!(
        asked[..5],
        ["stream ", "watch 5", "stream ", "watch 20", "stream "]
    );
}

#[tokio::test]
async fn a_list_that_breaks_is_begun_again_and_nothing_of_it_is_seen() {
    let half = vec![event("ADDED", object("gone", 1))];
    let answers = vec![
        Answer::Refuse(503),
        Answer::Ends(half.clone()),
        Answer::Hangs(half),
        Answer::Ends(vec![event("ADDED", object("a", 2)), bookmark(3, true)]),
    ];
    let (seen, asked, _) = play(answers, 1, false).await;
    assert_eq!(seen, ["reset a"]);
    assert_eq!(asked[..4], ["stream "; 4]);
}

#[tokio::test]
async fn servers_without_streamed_lists_are_asked_for_pages() {
    let page = |items: Vec<Value>, token: &str, version: &str| {
        Answer::Page(json!({"apiVersion": "v1", "kind": "ConfigMapList",
            "metadata": {"continue": token, "resourceVersion": version}, "items": items}))
    };
    let answers = vec![
        Answer::Refuse(422),
        page(vec![object("a", 1), bad("b", 2)], "next", "9"),
        page(vec![object("c", 3)], "", "9"),
        Answer::Hangs(vec![event("ADDED", object("d", 10))]),
    ];
    let (seen, asked, _) = play(answers, 2, false).await;
    assert_eq!(seen, ["reset a,c!ns/b", "upsert d"]);
    assert_eq!(asked, ["stream ", "list -", "list next", "watch 9"]);
}

#[tokio::test]
async fn silence_is_noticed_and_in_the_end_listed_again() {
    let list = || Answer::Ends(vec![event("ADDED", object("a", 1)), bookmark(5, true)]);
    let answers = vec![
        list(),
        Answer::Hangs(vec![bookmark(6, false)]),
        Answer::Hangs(vec![]),
        list(),
    ];
    let (seen, asked, _) = play(answers, 2, false).await;
    assert_eq!(seen, ["reset a", "reset a"]);
    assert_eq!(asked[..4], ["stream ", "watch 5", "watch 6", "stream "]);
}

#[tokio::test]
async fn an_unknown_kind_is_empty_if_it_may_be_and_waited_for_otherwise() {
    let (seen, _, ready) = play(vec![Answer::Refuse(404), Answer::Refuse(404)], 1, true).await;
    assert_eq!((seen, ready), (vec!["reset ".to_owned()], true));
    let found = Answer::Ends(vec![event("ADDED", object("a", 1)), bookmark(5, true)]);
    let (seen, asked, _) = play(vec![Answer::Refuse(404), Answer::Refuse(403), found], 1, false).await;
    assert_eq!(seen, ["reset a"]);
    assert_eq!(asked[..3], ["stream "; 3]);
}
