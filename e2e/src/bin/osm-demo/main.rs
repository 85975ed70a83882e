//! The demo application and the clients and servers of the end-to-end tests: one program, many roles.
//!
//! Knows nothing of the mesh, as an application should not. Clients print what happened as JSON and exit with status
//! zero whenever they could find out; what it means is for the caller to judge.

mod books;
mod client;
mod load;
mod serve;

use clap::{Parser, Subcommand};

/// The demo application and the clients and servers of the end-to-end tests.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Buys books, over and over, and counts the answers.
    Bookbuyer(books::customer::Options),
    /// Tries to get books it may not have, over and over, and counts the answers.
    Bookthief(books::customer::Options),
    /// Sells books; orders new ones from the warehouse.
    Bookstore(books::store::Options),
    /// Delivers books; keeps its records in a MySQL database.
    Bookwarehouse(books::warehouse::Options),
    /// Serves HTTP, gRPC, WebSocket and TCP for tests.
    Serve(serve::Options),
    /// Sends one HTTP request.
    Get(client::http::Options),
    /// Opens TCP connections and prints what came back.
    Tcp(client::tcp::Options),
    /// Shakes hands with a TLS server and prints the certificates it showed.
    Tls(client::tls::Options),
    /// Sends one WebSocket message and prints the answer.
    Websocket(client::websocket::Options),
    /// Asks a gRPC server for its health.
    Grpc(client::grpc::Options),
    /// Sends requests at a constant rate and counts what happened to each.
    Load(load::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().role {
        Role::Bookbuyer(options) => until_stopped(books::customer::run("bookbuyer", options)).await,
        Role::Bookthief(options) => until_stopped(books::customer::run("bookthief", options)).await,
        Role::Bookstore(options) => until_stopped(books::store::run(options)).await,
        Role::Bookwarehouse(options) => until_stopped(books::warehouse::run(options)).await,
        Role::Serve(options) => until_stopped(serve::run(options)).await,
        Role::Get(options) => print(&client::http::run(options).await?),
        Role::Tcp(options) => print(&client::tcp::run(options).await),
        Role::Tls(options) => print(&client::tls::run(options).await?),
        Role::Websocket(options) => print(&client::websocket::run(options).await?),
        Role::Grpc(options) => print(&client::grpc::run(options).await?),
        Role::Load(options) => print(&load::run(options).await?),
    }
}

fn print<T: serde::Serialize>(result: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}

/// Runs a server until Kubernetes asks it to stop; process 1 of a container has no default handler for that.
async fn until_stopped(server: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        result = server => result,
        result = stopped() => result,
    }
}

/// Returns on SIGTERM or SIGINT.
async fn stopped() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
