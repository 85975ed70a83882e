//! bookwarehouse: delivers books and keeps its records in a MySQL database, whose server speaks first.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use clap::Args;
use http::StatusCode;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Opts, Pool};

use super::PORT;
use crate::client::seconds;
use crate::serve;

#[derive(Args)]
pub(crate) struct Options {
    /// The database: `mysql://user:password@host:port/database`.
    #[arg(
        long,
        env = "DATABASE_URL",
        default_value = "mysql://root:books@mysql.bookwarehouse:3306/books"
    )]
    database_url: String,
    /// Seconds a query may take, connecting included.
    #[arg(long, default_value = "4", value_parser = seconds)]
    timeout: Duration,
    /// Where it listens.
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

struct Warehouse {
    records: Pool,
    timeout: Duration,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    // The message of a malformed URL would hold the password.
    let address = Opts::from_url(&options.database_url)
        .ok()
        .context("DATABASE_URL is not a mysql:// URL")?;
    let warehouse = Arc::new(Warehouse {
        records: Pool::new(address),
        timeout: options.timeout,
    });
    let router = axum::Router::new()
        .route("/restock-books", post(restock))
        .route("/health", get(|| async { "ok" }))
        .with_state(warehouse);
    serve::serve_http(serve::listen(options.port).await?, router).await;
    Ok(())
}

/// Records a delivery and answers with how many there were.
async fn restock(State(warehouse): State<Arc<Warehouse>>) -> Response {
    let recorded = tokio::time::timeout(warehouse.timeout, record(&warehouse.records)).await;
    let (status, text) = match recorded {
        Ok(Ok(total)) => (StatusCode::OK, total.to_string()),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("the database: {error}")),
        Err(_) => (
            StatusCode::GATEWAY_TIMEOUT,
            format!("the database: no answer in {:?}", warehouse.timeout),
        ),
    };
    (status, [("identity", "bookwarehouse")], text).into_response()
}

async fn record(records: &Pool) -> mysql_async::Result<u64> {
    let mut connection = records.get_conn().await?;
    connection
        .query_drop(
            "CREATE TABLE IF NOT EXISTS deliveries (id BIGINT AUTO_INCREMENT PRIMARY KEY, at TIMESTAMP)",
        )
        .await?;
    connection
        .query_drop("INSERT INTO deliveries (at) VALUES (CURRENT_TIMESTAMP)")
        .await?;
    Ok(connection
        .query_first("SELECT COUNT(*) FROM deliveries")
        .await?
        .unwrap_or_default())
}
