//! One call of `grpc.health.v1.Health/Check`, over as much of HTTP/2 as it needs (RFC 9113, RFC 7541).
//!
//! Request headers are sent as literals, and those of the response are not read: a server that is not healthy sends
//! another status in its message, or no message at all. So there is no header compression here, and no state.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// Largest frame the server may send: the protocol's default, which this client does not change.
const MAX_FRAME: usize = 16 * 1024;
/// Largest answer. A `HealthCheckResponse` has two bytes.
const MAX_ANSWER: usize = 1024;
/// Most frames to look at before the answer.
const MAX_FRAMES: usize = 100;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// Why a server is not taken for healthy.
#[derive(Debug, thiserror::Error)]
pub(super) enum GrpcError {
    /// The connection failed, or took too long.
    #[error("the gRPC health check failed: {0}")]
    Connection(#[from] std::io::Error),
    /// The server gave no answer: it has no health service, does not know the service asked for, or refused.
    #[error(
        "the server ended the gRPC health check without an answer: has it the service grpc.health.v1.Health?"
    )]
    NoAnswer,
    /// The server answered something else.
    #[error("the server does not speak gRPC: {0}")]
    Malformed(&'static str),
    /// The server answered.
    #[error("the gRPC health check says {0}")]
    NotServing(&'static str),
}

/// Asks whether `service` is serving; the server as a whole if it is empty.
pub(super) fn check(
    stream: &TcpStream,
    port: u16,
    service: &str,
    deadline: Instant,
) -> Result<(), GrpcError> {
    let mut connection = Connection { stream, deadline };
    connection.send(&request(port, service, deadline))?;
    let mut answer = Vec::new();
    for _ in 0..MAX_FRAMES {
        let frame = connection.receive()?;
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => connection.send(&encode(SETTINGS, ACK, 0, &[]))?,
            PING if frame.flags & ACK == 0 => connection.send(&encode(PING, ACK, 0, &frame.payload))?,
            DATA if frame.stream == 1 => {
                answer.extend_from_slice(frame.data()?);
                if answer.len() > MAX_ANSWER {
                    return Err(GrpcError::Malformed("the answer is too long"));
                }
            }
            RST_STREAM if frame.stream == 1 => return serving(&answer),
            GOAWAY if answer.is_empty() => return Err(GrpcError::NoAnswer),
            _ => {}
        }
        if frame.stream == 1 && matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
            return serving(&answer);
        }
    }
    Err(GrpcError::Malformed("too many frames before the answer"))
}

/// Reads the message of a complete answer.
fn serving(answer: &[u8]) -> Result<(), GrpcError> {
    let Some((prefix, message)) = answer.split_at_checked(5) else {
        return Err(GrpcError::NoAnswer);
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if prefix[0] != 0 || length as usize != message.len() {
        return Err(GrpcError::Malformed("the answer is compressed or cut off"));
    }
    // The message has one field, a number; absent means zero.
    let status = match message {
        [] => Some(0),
        [0x08, number @ ..] => varint(number),
        _ => None,
    };
    match status {
        Some(SERVING) => Ok(()),
        Some(0) => Err(GrpcError::NotServing("UNKNOWN")),
        Some(2) => Err(GrpcError::NotServing("NOT_SERVING")),
        Some(3) => Err(GrpcError::NotServing("SERVICE_UNKNOWN")),
        _ => Err(GrpcError::Malformed("the answer is no HealthCheckResponse")),
    }
}

/// Preface, settings, headers and message, in one write.
fn request(port: u16, service: &str, deadline: Instant) -> Vec<u8> {
    let authority = format!("localhost:{port}");
    let timeout = deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1));
    let timeout = format!("{}m", timeout.as_millis().min(99_999_999));
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", &authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "osm-sidecar"),
        ("grpc-timeout", &timeout),
    ] {
        // Literal header field without indexing, new name, neither compressed.
        headers.push(0);
        for text in [name, value] {
            // All are shorter than 127 bytes, so that the length takes one.
            headers.push(text.len() as u8);
            headers.extend_from_slice(text.as_bytes());
        }
    }
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let mut data = vec![0];
    data.extend_from_slice(&(message.len() as u32).to_be_bytes());
    data.extend_from_slice(&message);

    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(encode(SETTINGS, 0, 0, &[]));
    request.extend(encode(HEADERS, END_HEADERS, 1, &headers));
    request.extend(encode(DATA, END_STREAM, 1, &data));
    request
}

/// A frame. `payload` is far shorter than the 16 MiB a length can tell.
fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// The payload of a DATA frame without its padding.
    fn data(&self) -> Result<&[u8], GrpcError> {
        if self.flags & PADDED == 0 {
            return Ok(&self.payload);
        }
        let padded = self
            .payload
            .split_first()
            .and_then(|(padding, rest)| rest.get(..rest.len().checked_sub(usize::from(*padding))?));
        padded.ok_or(GrpcError::Malformed("a frame is padded wrongly"))
    }
}

struct Connection<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Connection<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<(), GrpcError> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        Ok(self.stream.write_all(bytes)?)
    }

    fn receive(&mut self) -> Result<Frame, GrpcError> {
        let mut head = [0; 9];
        self.fill(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if length > MAX_FRAME {
            return Err(GrpcError::Malformed("a frame is too long"));
        }
        let mut payload = vec![0; length];
        self.fill(&mut payload)?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Ok(Frame {
            kind: head[3],
            flags: head[4],
            stream,
            payload,
        })
    }

    /// Reads as much as there is room for; a server that sends a byte now and then does not move the deadline.
    fn fill(&mut self, mut room: &mut [u8]) -> Result<(), GrpcError> {
        while !room.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(room)? {
                0 => return Err(GrpcError::NoAnswer),
                count => room = &mut room[count..],
            }
        }
        Ok(())
    }

    fn left(&self) -> Result<Duration, GrpcError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())
        } else {
            Ok(left)
        }
    }
}

/// Protocol Buffers' variable length number, the whole of `bytes`.
fn varint(bytes: &[u8]) -> Option<u64> {
    let (last, rest) = bytes.split_last()?;
    if bytes.len() > 9 || last & 0x80 != 0 || rest.iter().any(|byte| byte & 0x80 == 0) {
        return None;
    }
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f)),
    )
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}
