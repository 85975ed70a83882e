//! bookstore: sells books and has the warehouse deliver new ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Args;
use http::{Method, StatusCode, Uri};

use super::PORT;
use crate::client::http as client;
use crate::serve;

#[derive(Args)]
pub(crate) struct Options {
    /// What this store calls itself in the `Identity` header.
    #[arg(long, env = "IDENTITY", default_value = "bookstore")]
    identity: String,
    /// The warehouse; books come from nowhere when empty.
    #[arg(
        long,
        env = "BOOKWAREHOUSE",
        default_value = "bookwarehouse.bookwarehouse:14001"
    )]
    bookwarehouse: String,
    /// Where it listens.
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

struct Store {
    identity: String,
    sold: AtomicU64,
    restock: Option<client::Options>,
    http: client::HttpClient,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let restock = match options.bookwarehouse.as_str() {
        "" => None,
        address => Some(client::Options {
            url: format!("http://{address}/restock-books").parse::<Uri>()?,
            method: Method::POST,
            headers: Vec::new(),
            data: "1".to_owned(),
            http2: false,
            timeout: Duration::from_secs(5),
        }),
    };
    let store = Arc::new(Store {
        identity: options.identity,
        sold: AtomicU64::new(0),
        restock,
        http: client::client(false, true),
    });
    let router = axum::Router::new()
        .route("/books-bought", get(bought))
        .route("/buy-a-book/new", get(buy))
        .route("/health", get(|| async { "ok" }))
        .with_state(store);
    serve::serve_http(serve::listen(options.port).await?, router).await;
    Ok(())
}

async fn bought(State(store): State<Arc<Store>>) -> Response {
    answer(&store, StatusCode::OK, "books bought")
}

async fn buy(State(store): State<Arc<Store>>) -> Response {
    if let Some(order) = &store.restock {
        let delivered = match client::send(&store.http, order).await {
            Ok(delivered) if delivered.status == Some(200) => delivered,
            Ok(refused) => {
                let why = refused
                    .error
                    .unwrap_or_else(|| format!("status {:?}: {}", refused.status, refused.body));
                return answer(
                    &store,
                    StatusCode::BAD_GATEWAY,
                    &format!("the warehouse does not deliver: {why}"),
                );
            }
            Err(error) => return answer(&store, StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
        };
        store.sold.fetch_add(1, Ordering::Relaxed);
        return answer(
            &store,
            StatusCode::OK,
            &format!("a book of stock {}", delivered.body),
        );
    }
    store.sold.fetch_add(1, Ordering::Relaxed);
    answer(&store, StatusCode::OK, "a book")
}

fn answer(store: &Store, status: StatusCode, text: &str) -> Response {
    let headers = [
        ("identity", store.identity.clone()),
        ("booksbought", store.sold.load(Ordering::Relaxed).to_string()),
    ];
    (status, headers, format!("{text}\n")).into_response()
}
