//! Cutting the answer to a watch into frames: four bytes of length, then as many bytes.
//!
//! Invariants: a frame that lies within one chunk is a slice of it, nothing is copied; one that is longer than any event
//! may be is refused by its length, before it is gathered.

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use kube::Error;

use super::{super::source::MAX_EVENT, WireError};

/// Bytes of a frame's length.
const HEADER: usize = 4;

/// The frames of an answer that comes in chunks.
pub(super) struct Frames<S> {
    chunks: S,
    /// What is left of the last chunk.
    chunk: Bytes,
    /// The beginning, from its length on, of a frame that spans chunks.
    begun: BytesMut,
}

impl<S, E> Frames<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    Error: From<E>,
{
    pub(super) fn new(chunks: S) -> Self {
        Self {
            chunks,
            chunk: Bytes::new(),
            begun: BytesMut::new(),
        }
    }

    /// The next frame; none when the answer has ended, be it within a frame.
    pub(super) async fn next(&mut self) -> kube::Result<Option<Bytes>> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(Some(frame));
            }
            match self.chunks.next().await {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(None),
            }
        }
    }

    /// The next frame, if all of it is there; if not, the chunk is used up.
    fn cut(&mut self) -> Result<Option<Bytes>, WireError> {
        if self.begun.is_empty()
            && let Some(end) = end(&self.chunk)?
            && self.chunk.len() >= end
        {
            let mut frame = self.chunk.split_to(end);
            frame.advance(HEADER);
            return Ok(Some(frame));
        }
        loop {
            // First the length is gathered, then what it says.
            let end = end(&self.begun)?;
            let missing = end.unwrap_or(HEADER) - self.begun.len();
            if missing == 0 {
                let mut frame = std::mem::take(&mut self.begun).freeze();
                frame.advance(HEADER);
                return Ok(Some(frame));
            }
            if self.chunk.is_empty() {
                return Ok(None);
            }
            let more = self.chunk.split_to(missing.min(self.chunk.len()));
            self.begun.extend_from_slice(&more);
        }
    }
}

/// Where the frame that `bytes` begin with ends, if they say already.
fn end(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    match usize::try_from(u32::from_be_bytes(*header)) {
        Ok(length) if length <= MAX_EVENT => Ok(Some(HEADER + length)),
        _ => Err(WireError::TooLong),
    }
}
