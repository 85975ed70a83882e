use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;

fn service() -> Router {
    let limits = Limits {
        body: 64 * 1024,
        concurrency: 2,
        deadline: Duration::from_millis(300),
    };
    router(
        "/review",
        limits,
        ReviewMetrics::default(),
        |request: Request| async move {
            match request.name.as_str() {
                "panic" => panic!("as asked"),
                "slow" => std::future::pending().await,
                "bad" => Verdict::from(&request).deny("it is bad"),
                "patched" => {
                    let patch =
                        serde_json::from_value(json!([{ "op": "add", "path": "/x", "value": 1 }])).unwrap();
                    Verdict::from(&request).with_patch(patch).unwrap()
                }
                _ => Verdict::from(&request),
            }
        },
    )
}

async fn send(content_type: &str, body: impl Into<Body>) -> (StatusCode, String) {
    let request = http::Request::post("/review")
        .header(CONTENT_TYPE, content_type)
        .body(body.into())
        .unwrap();
    let response = service().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn good(name: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "name": name, "namespace": "shop", "operation": "CREATE", "userInfo": {},
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {}},
        },
    })
}

async fn verdict(name: &str) -> Value {
    let (status, body) = send("application/json; charset=utf-8", good(name).to_string()).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn verdicts_echo_the_uid() {
    let allowed = verdict("good").await;
    assert_eq!(
        (&allowed["response"]["uid"], &allowed["response"]["allowed"]),
        (&json!("u-1"), &json!(true))
    );
    assert_eq!(allowed["apiVersion"], "admission.k8s.io/v1");
    for (name, message) in [("bad", "it is bad"), ("panic", "failed"), ("slow", "too long")] {
        let denied = verdict(name).await;
        assert_eq!(denied["response"]["uid"], "u-1", "{name}");
        assert_eq!(denied["response"]["allowed"], false, "{name}");
        let said = denied["response"]["status"]["message"].as_str().unwrap();
        assert!(said.contains(message), "{said}");
    }
}

#[tokio::test]
async fn garbage_is_a_4xx() {
    let mut without_request = good("x");
    without_request.as_object_mut().unwrap().remove("request");
    let mut old = good("x");
    old["apiVersion"] = "admission.k8s.io/v1beta1".into();
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let long = vec![b'x'; 10 * 1024 * 1024];
    for (content_type, body, expected) in [
        ("application/json", Vec::new(), 400),
        ("application/json", b"\x00\xff\x12abc".to_vec(), 400),
        ("application/json", b"{}".to_vec(), 400),
        ("application/json", without_request.to_string().into_bytes(), 400),
        ("application/json", old.to_string().into_bytes(), 400),
        ("application/json", deep.into_bytes(), 400),
        ("application/json", long, 413),
        ("text/plain", good("x").to_string().into_bytes(), 415),
        ("", good("x").to_string().into_bytes(), 415),
    ] {
        let (status, message) = send(content_type, body).await;
        assert_eq!(status, expected, "{message}");
        assert!(message.len() < 600);
    }
}

#[tokio::test]
async fn a_request_that_does_not_decode_is_denied_under_its_uid() {
    let mut odd = good("x");
    odd["request"]["object"] = json!(5);
    let (status, body) = send("application/json", odd.to_string()).await;
    assert_eq!(status, 200);
    let denied: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(denied["response"]["uid"], "u-1");
    assert_eq!(denied["response"]["allowed"], false);
    let deep = format!("\"spec\":{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let (status, body) = send(
        "application/json",
        good("x").to_string().replace("\"spec\":{}", &deep),
    )
    .await;
    let denied: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status.as_u16(), &denied["response"]["uid"]),
        (200, &json!("u-1"))
    );
    assert_eq!(denied["response"]["allowed"], false);
    odd["request"]["uid"] = "x".repeat(10_000).into();
    assert_eq!(send("application/json", odd.to_string()).await.0, 400);
}

#[tokio::test]
async fn a_body_that_trickles_is_cut_off() {
    let body = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    assert_eq!(
        send("application/json", body).await.0,
        StatusCode::REQUEST_TIMEOUT
    );
}

#[tokio::test]
async fn patches_are_base64() {
    let (status, body) = send("application/json", good("patched").to_string()).await;
    assert_eq!(status, StatusCode::OK);
    let review: Value = serde_json::from_str(&body).unwrap();
    let patch = BASE64
        .decode(review["response"]["patch"].as_str().unwrap())
        .unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    assert_eq!(patch[0]["path"], "/x");
    assert_eq!(review["response"]["patchType"], "JSONPatch");
}
