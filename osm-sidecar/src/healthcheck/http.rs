//! As much of HTTP/1 as a probe needs: one GET, one answer, the connection ends.

use std::{
    io::{ErrorKind, Read, Result, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

/// Longest request, in bytes.
const MAX_REQUEST: usize = 16 * 1024;

/// A request.
pub(super) struct Request<'a> {
    pub(super) path: &'a str,
    headers: Vec<(&'a str, &'a str)>,
}

/// An answer: its status and a line for people.
pub(super) struct Status(pub(super) u16, pub(super) String);

impl<'a> Request<'a> {
    /// A header, by its name in any case.
    pub(super) fn header(&self, name: &str) -> Option<&'a str> {
        let same = |(key, value): &(&'a str, &'a str)| key.eq_ignore_ascii_case(name).then_some(*value);
        self.headers.iter().find_map(same)
    }

    fn parse(text: &'a str) -> Option<Self> {
        let mut lines = text.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if method != "GET" || !version.starts_with("HTTP/1.") {
            return None;
        }
        let header = |line: &'a str| line.split_once(':').map(|(name, value)| (name, value.trim()));
        Some(Self {
            path: target.split('?').next()?,
            headers: lines.filter_map(header).collect(),
        })
    }
}

/// Reads one request and answers it. What goes wrong concerns the client alone.
pub(super) fn answer(stream: &TcpStream, patience: Duration, respond: impl FnOnce(&Request<'_>) -> Status) {
    let status = match read(stream, Instant::now() + patience) {
        Ok(head) => match std::str::from_utf8(&head).ok().and_then(Request::parse) {
            Some(request) => respond(&request),
            None => Status(400, "not a GET request".to_owned()),
        },
        Err(error) if error.kind() == ErrorKind::InvalidData => Status(431, error.to_string()),
        Err(error) => Status(408, error.to_string()),
    };
    let _ = write(stream, &status, patience);
}

/// Everything up to the empty line.
fn read(mut stream: &TcpStream, deadline: Instant) -> Result<Vec<u8>> {
    let mut head = Vec::with_capacity(512);
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(&buffer[..count]);
        if let Some(end) = head[from..].windows(4).position(|window| window == b"\r\n\r\n") {
            head.truncate(from + end);
            return Ok(head);
        }
        if head.len() > MAX_REQUEST {
            return Err(std::io::Error::new(
                ErrorKind::InvalidData,
                "the request is too long",
            ));
        }
    }
}

fn write(mut stream: &TcpStream, Status(code, text): &Status, patience: Duration) -> Result<()> {
    let reason = match code {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    };
    let head = "Content-Type: text/plain\r\nConnection: close";
    let length = text.len();
    stream.set_write_timeout(Some(patience))?;
    write!(
        stream,
        "HTTP/1.1 {code} {reason}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{text}"
    )?;
    stream.shutdown(Shutdown::Write)
}
