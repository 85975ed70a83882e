//! TCP servers: one answers, one speaks first.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Answers everything it hears with `<pod>: <what it heard>`.
pub(super) async fn echo(listener: TcpListener, name: Arc<str>) {
    super::accept(listener, move |stream, _| answer(stream, Arc::clone(&name))).await;
}

/// Says `<pod>: welcome` at once, then answers like [`echo`].
pub(super) async fn greet(listener: TcpListener, name: Arc<str>) {
    super::accept(listener, move |mut stream, _| {
        let name = Arc::clone(&name);
        async move {
            if stream
                .write_all(format!("{name}: welcome\n").as_bytes())
                .await
                .is_ok()
            {
                answer(stream, name).await;
            }
        }
    })
    .await;
}

async fn answer(mut stream: TcpStream, name: Arc<str>) {
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let text = format!("{name}: {}", String::from_utf8_lossy(&buffer[..read]));
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}
