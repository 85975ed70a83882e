//! A proxy's requests off an HTTP body: gRPC's frames, each one message.
//!
//! Owns the framing of what is received. Invariant: no more than one request of the allowed size is held, and nothing
//! while the proxy is quiet: a stream that has nothing to say costs no buffer.

use std::marker::PhantomData;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;

use super::{PREFIX, turn::LARGE_REQUEST};

/// What came.
#[derive(Debug)]
pub(super) enum Next<Q> {
    /// A request.
    Request(Q),
    /// A large one is on its way, which is not read before that is allowed.
    Large,
    /// The proxy has no more.
    End,
}

/// The requests of one stream.
#[derive(Debug)]
pub(super) struct Requests<Q> {
    body: Incoming,
    unread: Frames,
    message: PhantomData<fn() -> Q>,
}

impl<Q: Message + Default> Requests<Q> {
    /// Requests of at most `limit` bytes each.
    pub(super) fn new(body: Incoming, limit: usize) -> Self {
        Self {
            body,
            unread: Frames {
                buffer: BytesMut::new(),
                limit,
            },
            message: PhantomData,
        }
    }

    /// What comes next; large requests only if `large`. Nothing is lost if the wait is given up.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` or `INVALID_ARGUMENT` if the proxy is to blame; another status if the connection broke.
    pub(super) async fn next(&mut self, large: bool) -> Result<Next<Q>, Status> {
        loop {
            if let Some(message) = self.unread.take()? {
                let malformed =
                    |error| Status::invalid_argument(format!("the request is malformed: {error}"));
                return Q::decode(message.freeze()).map(Next::Request).map_err(malformed);
            }
            if !large && self.unread.is_large() {
                return Ok(Next::Large);
            }
            self.unread.make_room();
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.unread.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(Status::cancelled(error.to_string())),
                None if self.unread.buffer.is_empty() => return Ok(Next::End),
                None => return Err(Status::invalid_argument("the stream ends inside a request")),
            }
        }
    }
}

/// What was received and not yet taken.
#[derive(Debug)]
struct Frames {
    buffer: BytesMut,
    limit: usize,
}

impl Frames {
    /// Whether the next message, of which a part is there, needs a turn.
    fn is_large(&self) -> bool {
        let prefix = self.buffer.first_chunk::<PREFIX>();
        prefix.is_some_and(|[_, length @ ..]| u32::from_be_bytes(*length) as usize >= LARGE_REQUEST)
    }

    /// Room for the rest of the next message at once: growing bit by bit would copy it again and again.
    fn make_room(&mut self) {
        if let Some([_, length @ ..]) = self.buffer.first_chunk::<PREFIX>() {
            let length = u32::from_be_bytes(*length) as usize;
            let whole = PREFIX + length.min(self.limit);
            self.buffer.reserve(whole.saturating_sub(self.buffer.len()));
        }
    }

    /// The bytes of the next message, if all of them are there.
    fn take(&mut self) -> Result<Option<BytesMut>, Status> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if compressed != 0 {
            return Err(Status::invalid_argument("compressed requests are not understood"));
        }
        if length > self.limit {
            let message = format!("a request of {length} bytes: at most {} are allowed", self.limit);
            return Err(Status::out_of_range(message));
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let message = self.buffer.split_to(length);
        // What is left may wait for its turn, and would keep the memory of what was taken.
        self.buffer = BytesMut::from(&self.buffer[..]);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn frames(limit: usize) -> Frames {
        Frames {
            buffer: BytesMut::new(),
            limit,
        }
    }

    #[test]
    fn messages_are_taken_when_they_are_whole() {
        let mut frames = frames(8);
        for byte in [0, 0, 0, 0, 2, b'a'] {
            frames.buffer.put_u8(byte);
            assert!(frames.take().unwrap().is_none());
        }
        frames.buffer.put_slice(b"b\x00\x00\x00\x00\x00\x00");
        assert_eq!(frames.take().unwrap().unwrap(), "ab");
        assert_eq!(frames.take().unwrap().unwrap(), "");
        assert!(frames.take().unwrap().is_none());
        assert_eq!(frames.buffer.len(), 1);
        assert!(frames.buffer.capacity() < 8, "what was taken is not kept");
        frames.buffer.put_slice(b"\x00\x00\x00\x00");
        assert_eq!(frames.take().unwrap().unwrap(), "");
        assert_eq!(frames.buffer.capacity(), 0, "a quiet stream holds nothing");
    }

    #[test]
    fn a_large_message_is_known_by_its_head() {
        let mut frames = frames(LARGE_REQUEST);
        frames.buffer.put_slice(&[0, 0, 0, 255]);
        assert!(!frames.is_large(), "its length is not there yet");
        frames.buffer.put_slice(&[255]);
        assert!(!frames.is_large());
        frames.buffer.clear();
        frames.buffer.put_slice(&[0, 0, 1, 0, 0]);
        assert!(frames.is_large());
        assert!(frames.take().unwrap().is_none());
    }

    #[test]
    fn there_is_room_for_one_message_of_the_allowed_size() {
        let mut frames = frames(1_000);
        frames.make_room();
        assert_eq!(frames.buffer.capacity(), 0, "nothing is known of it yet");
        frames.buffer.put_slice(&[0, 0, 0, 1, 0]);
        frames.make_room();
        let room = PREFIX + 256;
        assert!((room..2 * room).contains(&frames.buffer.capacity()));
        frames.buffer.clear();
        frames.buffer.put_slice(&[0, 255, 255, 255, 255]);
        frames.make_room();
        assert!((PREFIX + 1_000..4_000).contains(&frames.buffer.capacity()));
    }

    #[test]
    fn what_is_too_large_or_compressed_is_refused_before_it_has_arrived() {
        let mut large = frames(8);
        large.buffer.put_slice(&[0, 0, 0, 0, 9]);
        assert_eq!(large.take().unwrap_err().code(), tonic::Code::OutOfRange);
        let mut compressed = frames(8);
        compressed.buffer.put_slice(&[1, 0, 0, 0, 1]);
        assert_eq!(
            compressed.take().unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
    }
}
