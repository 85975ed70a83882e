//! `answers/` is what Kubernetes 1.36 answers, written by its own watch handler and serializers: to a watch of Services
//! (ADDED shop/a 7, BOOKMARK 8 that ends a list, MODIFIED shop/a 9, DELETED shop/b 10, BOOKMARK 11, ERROR 410), to a list
//! of them (shop/a 7 and shop/b 8, at 12, to be continued), and a refusal (403).

use std::sync::Arc;

use futures::{FutureExt, StreamExt, stream};
use http_body_util::StreamBody;
use kube::core::WatchEvent;
use osm_core::facts::{Fact, service};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    super::{Event, Watch, WatchMetrics, source::MAX_EVENT},
    *,
};
use crate::health::Health;

const WATCHED: &[u8] = include_bytes!("answers/watch.bin");
const LISTED: &[u8] = include_bytes!("answers/list.bin");
const REFUSED: &[u8] = include_bytes!("answers/status.bin");

/// All that is sent of an object in these tests, and of an envelope.
#[derive(Clone, Message)]
struct Object {
    #[prost(message, required, tag = "1")]
    metadata: Metadata,
    #[prost(bytes = "vec", tag = "2")]
    spec: Vec<u8>,
}

#[derive(Clone, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(string, tag = "6")]
    version: String,
}

#[derive(Clone, Message)]
struct Sent {
    #[prost(message, required, tag = "1")]
    types: SentTypes,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
    #[prost(string, tag = "3")]
    encoding: String,
    #[prost(string, tag = "4")]
    content_type: String,
}

#[derive(Clone, Message)]
struct SentTypes {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Clone, Message)]
struct SentEvent {
    #[prost(string, tag = "1")]
    what: String,
    #[prost(message, required, tag = "2")]
    object: SentObject,
}

#[derive(Clone, Message)]
struct SentObject {
    #[prost(bytes = "vec", tag = "1")]
    raw: Vec<u8>,
}

fn object(name: &str, spec: &[u8]) -> Vec<u8> {
    let metadata = Metadata {
        name: name.into(),
        namespace: "shop".into(),
        version: "5".into(),
    };
    let spec = spec.to_vec();
    Object { metadata, spec }.encode_to_vec()
}

fn sealed(kind: &str, raw: Vec<u8>) -> Sent {
    let types = SentTypes {
        version: "v1".into(),
        kind: kind.into(),
    };
    Sent {
        types,
        raw,
        ..Sent::default()
    }
}

fn event(what: &str, sent: &Sent) -> Bytes {
    let raw = [&b"k8s\0"[..], &sent.encode_to_vec()].concat();
    let what = what.into();
    let object = SentObject { raw };
    SentEvent { what, object }.encode_to_vec().into()
}

/// An event in a few words.
fn told(event: kube::Result<WatchEvent<Guarded<service::Object>>>) -> String {
    let of = |what: &str, object: Guarded<service::Object>| {
        let version = object.version().unwrap_or("-");
        match &object.object {
            Ok(_) => format!("{what} {} {version}", object.key()),
            Err(_) => format!("{what} !{} {version}", object.key()),
        }
    };
    match event {
        Ok(WatchEvent::Added(object)) => of("added", object),
        Ok(WatchEvent::Modified(object)) => of("modified", object),
        Ok(WatchEvent::Deleted(object)) => of("deleted", object),
        Ok(WatchEvent::Bookmark(bookmark)) => {
            let ends = bookmark
                .metadata
                .annotations
                .contains_key("k8s.io/initial-events-end");
            format!("bookmark {} {ends}", bookmark.metadata.resource_version)
        }
        Ok(WatchEvent::Error(status)) => format!("error {} {}", status.code, status.reason),
        Err(error) => crate::client::describe(&error),
    }
}

const TOLD: [&str; 6] = [
    "added shop/a 7",
    "bookmark 8 true",
    "modified shop/a 9",
    "deleted shop/b 10",
    "bookmark 11 false",
    "error 410 Expired",
];

type Chunks = Vec<&'static [u8]>;

/// A client whose questions are all answered alike, and what it asked: path and query, and what it accepts.
fn server(status: u16, media_type: &'static str, chunks: Chunks) -> (Client, Arc<Mutex<Vec<[String; 2]>>>) {
    let asked = Arc::<Mutex<Vec<[String; 2]>>>::default();
    let asks = asked.clone();
    let answer = tower::service_fn(move |request: Request<Body>| {
        let accept = request.headers()[header::ACCEPT].to_str().unwrap();
        asks.lock().push([request.uri().to_string(), accept.to_owned()]);
        let frames = chunks
            .clone()
            .into_iter()
            .map(|chunk| Ok::<_, std::io::Error>(hyper::body::Frame::data(Bytes::from_static(chunk))));
        let answer = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, media_type)
            .body(StreamBody::new(stream::iter(frames.collect::<Vec<_>>())))
            .unwrap();
        async { Ok::<_, std::io::Error>(answer) }
    });
    (Client::new(answer, "default"), asked)
}

fn services(client: Client) -> Protobuf<service::Object> {
    Protobuf::all(client)
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const WATCHING: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// The events of an answer in these chunks.
async fn watched(chunks: Chunks) -> Vec<String> {
    let (client, _) = server(200, WATCHING, chunks);
    let events = services(client).watch(&WatchParams::default(), "5").await;
    events.unwrap().map(told).collect().await
}

#[tokio::test]
async fn an_answer_is_the_same_however_it_is_cut() {
    assert_eq!(watched(vec![WATCHED]).await, TOLD);
    for cut in 0..WATCHED.len() {
        let (before, after) = WATCHED.split_at(cut);
        assert_eq!(watched(vec![before, after]).await, TOLD, "at {cut}");
    }
    assert_eq!(watched(WATCHED.chunks(1).collect()).await, TOLD);
    let half = &WATCHED[..WATCHED.len() - 1];
    assert_eq!(watched(vec![half]).await, TOLD[..5], "half an event is none");
}

#[tokio::test]
async fn a_frame_within_a_chunk_is_a_slice_of_it() {
    let chunk = Bytes::from_static(b"\0\0\0\x02ab\0\0\0\0\0\0\0\x03cde");
    let mut frames = Frames::new(stream::iter([Ok::<_, Error>(chunk.clone())]));
    for expected in ["ab", "", "cde"] {
        let frame = frames.next().await.unwrap().unwrap();
        assert_eq!(frame, expected);
        assert!(expected.is_empty() || chunk.as_ptr_range().contains(&frame.as_ptr()));
    }
    assert!(frames.next().await.unwrap().is_none());
}

#[test]
fn a_frame_that_is_too_long_is_refused_before_it_is_gathered() {
    for (length, refused) in [
        (MAX_EVENT, false),
        (MAX_EVENT + 1, true),
        (u32::MAX as usize, true),
    ] {
        let header = Bytes::from(u32::try_from(length).unwrap().to_be_bytes().to_vec());
        for chunks in [vec![header.clone()], vec![header.slice(..1), header.slice(1..)]] {
            let chunks = stream::iter(chunks.into_iter().map(Ok::<_, Error>));
            let mut frames = Frames::new(chunks.chain(stream::pending()));
            // Nothing but its length has come.
            let next = frames.next().now_or_never();
            let error = next.map(|next| crate::client::describe(&next.unwrap_err()));
            let said = error.is_some_and(|error| error.contains("longer than any object"));
            assert_eq!(said, refused, "{length}");
        }
    }
}

#[test]
fn a_malformed_object_harms_itself_only() {
    let decode = |frame| told(decode_event(frame).map_err(Error::from));
    let good = event("ADDED", &sealed("Service", object("a", b"")));
    assert_eq!(decode(good.clone()), "added shop/a 5");
    // A cluster IP that is not UTF-8, and a spec that is no message.
    for spec in [&b"\x1a\x01\xff"[..], b"\xff"] {
        let bad = event("MODIFIED", &sealed("Service", object("a", spec)));
        assert_eq!(decode(bad), "modified !shop/a 5");
    }
    let page = |raw: &[u8]| {
        let item = |raw: &[u8]| [&[0x12, u8::try_from(raw.len()).unwrap()], raw].concat();
        let items = [item(&object("good", b"")), item(raw)].concat();
        let sent = sealed("ServiceList", items).encode_to_vec();
        decode_page::<service::Object>([&b"k8s\0"[..], &sent].concat().into())
    };
    let items = page(&object("bad", b"\xff")).unwrap().items;
    let keys: Vec<_> = items
        .iter()
        .map(|item| (item.key().name, item.object.is_ok()))
        .collect();
    assert_eq!(keys, [("good".to_owned(), true), ("bad".to_owned(), false)]);
    assert!(page(&object("", b"\xff")).is_err(), "nobody's");
}

#[test]
fn what_is_not_what_was_asked_for_is_an_error() {
    let decode = |frame| told(decode_event(frame).map_err(Error::from));
    let service = || sealed("Service", object("a", b""));
    assert_eq!(
        decode(event("ADDED", &sealed("", object("a", b"")))),
        "added shop/a 5"
    );
    let encoding = Sent {
        encoding: "gzip".into(),
        ..service()
    };
    let json = Sent {
        content_type: "application/json".into(),
        ..service()
    };
    let unversioned = [0x0a, 0x00];
    let bare = SentEvent {
        what: "ADDED".into(),
        object: SentObject {
            raw: object("a", b""),
        },
    };
    for (frame, error) in [
        (
            event("ADDED", &sealed("Status", object("a", b""))),
            "not of the kind Service",
        ),
        (event("ERROR", &service()), "not of the kind Status"),
        (event("GONE", &service()), "unknown type"),
        (event("ADDED", &encoding), "encoded otherwise"),
        (event("ADDED", &json), "encoded otherwise"),
        (
            event("ADDED", &sealed("Service", object("", b"\xff"))),
            "has no name",
        ),
        (
            event("BOOKMARK", &sealed("Service", unversioned.to_vec())),
            "has no version",
        ),
        (
            bare.encode_to_vec().into(),
            "should be Kubernetes' protobuf is not",
        ),
        (Bytes::from_static(b"{\"type\":\"ADDED\"}"), "cannot be decoded"),
        (Bytes::new(), "unknown type"),
    ] {
        let said = decode(frame);
        assert!(said.contains(error), "{said:?} should say {error:?}");
    }
}

#[tokio::test]
async fn a_page_is_read_and_asked_for_in_protobuf() {
    let (client, asked) = server(200, PROTOBUF, vec![LISTED]);
    let page = services(client.clone())
        .list(&ListParams::default().limit(2))
        .await
        .unwrap();
    let items: Vec<_> = page
        .items
        .into_iter()
        .map(|item| told(Ok(WatchEvent::Added(item))))
        .collect();
    assert_eq!(items, ["added shop/a 7", "added shop/b 8"]);
    assert_eq!(page.metadata.continue_.as_deref(), Some("next"));
    assert_eq!(page.metadata.resource_version.as_deref(), Some("12"));
    let params = WatchParams::default().labels("a=b");
    let _ = services(client).watch(&params, "5").await;
    let asked = asked.lock();
    let [[list, accept_list], [watch, accept_watch]] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!((&**accept_list, &**accept_watch), (PROTOBUF, WATCHING));
    assert!(list.contains("/api/v1/services?&limit=2"), "{list}");
    assert!(
        watch.contains("/api/v1/services?&watch=true") && watch.ends_with("&resourceVersion=5"),
        "{watch}"
    );
    assert!(watch.contains("labelSelector=a%3Db"), "{watch}");
}

#[tokio::test]
async fn a_refusal_keeps_its_code_whoever_says_it() {
    let long: &'static [u8] = vec![b'x'; MAX_REFUSAL + 1].leak();
    let json: &[u8] =
        br#"{"kind":"Status","status":"Failure","message":"gone","reason":"Expired","code":410}"#;
    for (status, media_type, body, said) in [
        (403, PROTOBUF, REFUSED, "services is forbidden (403 Forbidden)"),
        (410, "application/json", json, "gone (410 Expired)"),
        (422, "application/json", &b"{}"[..], " (422 )"),
        (
            404,
            "text/plain; charset=utf-8",
            &b"404 page not found\n"[..],
            "404 page not found (404 Not Found)",
        ),
        (502, "text/html", &b"\xff"[..], " (502 Bad Gateway)"),
        (504, PROTOBUF, &b"no protobuf"[..], " (504 Gateway Timeout)"),
        (503, "text/plain", long, " (503 Service Unavailable)"),
    ] {
        let (client, _) = server(status, media_type, vec![body]);
        let list = services(client.clone()).list(&ListParams::default()).await;
        let watch = services(client).watch(&WatchParams::default(), "5").await;
        for error in [list.err().unwrap(), watch.err().unwrap()] {
            assert!(
                matches!(&error, Error::Api(api) if api.code == status),
                "{error:?}"
            );
            assert_eq!(crate::client::describe(&error), said);
        }
    }
}

#[tokio::test]
async fn an_answer_in_json_is_not_read_as_protobuf() {
    let (client, _) = server(200, "application/json", vec![b"{}"]);
    let error = services(client).list(&ListParams::default()).await.err().unwrap();
    let said = crate::client::describe(&error);
    assert!(
        said.contains("\"application/json\", not Kubernetes' protobuf"),
        "{said}"
    );
}

#[tokio::test]
async fn a_watch_reads_it_all() {
    let (client, _) = server(200, WATCHING, vec![WATCHED]);
    let (sink, mut events) = mpsc::channel(1);
    let health = Health::new();
    let stop = CancellationToken::new();
    let run = Watch::<service::Object, _>::wire(client, "services").run(
        |object| service::from(&object),
        |event| event,
        sink,
        health.condition("synced"),
        WatchMetrics::default(),
        stop.clone(),
    );
    let read = async {
        let Some(Event::Reset { objects, malformed }) = events.recv().await else {
            panic!("no list")
        };
        let [Ok(Fact::Service(fact))] = &objects[..] else {
            panic!("{objects:?}")
        };
        assert!(malformed.is_empty());
        assert_eq!(
            (&*fact.name, fact.created, fact.ports.len()),
            ("a", 1_577_934_245, 2)
        );
        // The same again, as a watch: its first event is a change now.
        let Some(Event::Upsert(Ok(Fact::Service(again)))) = events.recv().await else {
            panic!("no change")
        };
        assert_eq!(again, *fact);
        stop.cancel();
    };
    tokio::join!(run, read);
}
