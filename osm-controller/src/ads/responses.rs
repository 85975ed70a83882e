//! Responses as the body of an HTTP answer: gRPC's frames, written a piece at a time.
//!
//! Owns the framing of what is sent. Invariant: of a response, however large it is and however slow its proxy, only the
//! pieces that the transport is sending are in memory; the resources themselves are shared by all.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use osm_core::xds::{Pieces, Response};
use tokio::sync::mpsc;
use tonic::Status;

use super::PREFIX;

/// Bytes of a piece: one HTTP/2 frame of the usual size fits into one TLS record together with its head.
const PIECE: usize = 16 * 1_024 - 9;

/// What a stream sends: a response, or why it ends. Boxed, because a channel has room for 32 of them whatever its bound.
pub(super) type Outgoing = Result<Box<Response>, Status>;

/// The responses of one stream.
#[derive(Debug)]
pub(super) struct Responses {
    queue: mpsc::Receiver<Outgoing>,
    current: Option<Pieces>,
    ended: bool,
}

impl Responses {
    /// The answer that carries what comes through `queue`, until it is closed or ends with a status.
    pub(super) fn answer(queue: mpsc::Receiver<Outgoing>) -> http::Response<tonic::body::Body> {
        let body = Self {
            queue,
            current: None,
            ended: false,
        };
        let mut answer = http::Response::new(tonic::body::Body::new(body));
        answer
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        answer
    }

    /// The first piece of a response, behind the prefix.
    fn begin(&mut self, response: Response) -> Result<Bytes, Status> {
        let pieces = Pieces::new(response);
        let length = u32::try_from(pieces.left())
            .map_err(|_| Status::resource_exhausted("a response is larger than gRPC can carry"))?;
        let mut piece = BytesMut::with_capacity(PIECE.min(pieces.left() + PREFIX));
        piece.put_u8(0);
        piece.put_u32(length);
        Ok(self.fill(pieces, piece))
    }

    fn fill(&mut self, mut pieces: Pieces, mut piece: BytesMut) -> Bytes {
        pieces.fill(&mut piece, PIECE);
        self.current = (pieces.left() > 0).then_some(pieces);
        piece.freeze()
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        let mut trailers = HeaderMap::new();
        // Fails for a message that no header can carry; the code is there then.
        let _ = status.add_header(&mut trailers);
        Frame::trailers(trailers)
    }
}

impl Body for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(pieces) = self.current.take() {
            let piece = BytesMut::with_capacity(PIECE.min(pieces.left()));
            return Poll::Ready(Some(Ok(Frame::data(self.fill(pieces, piece)))));
        }
        let frame = match ready!(self.queue.poll_recv(context)) {
            Some(Ok(response)) => match self.begin(*response) {
                Ok(piece) => Frame::data(piece),
                Err(status) => self.end(&status),
            },
            Some(Err(status)) => self.end(&status),
            None => self.end(&Status::ok("")),
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use osm_core::resource::ResourceType;

    use super::*;

    fn response(names: usize) -> Response {
        let names = (0..names).map(|number| format!("name-{number}").into());
        Response {
            kind: ResourceType::Cluster,
            nonce: 1,
            resources: Vec::new(),
            removed: names.collect(),
            version: None,
        }
    }

    #[tokio::test]
    async fn pieces_add_up_to_grpcs_frames_and_an_end_has_a_status() {
        let (sender, queue) = mpsc::channel(4);
        let mut expected = Vec::new();
        for names in [0, 3, 10_000] {
            let response = response(names);
            expected.push(0);
            expected.extend(u32::try_from(response.encoded_len()).unwrap().to_be_bytes());
            response.encode(&mut expected);
            sender.send(Ok(Box::new(response))).await.unwrap();
        }
        drop(sender);
        let mut body = Responses::answer(queue).into_body();
        let (mut all, mut trailers) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(piece) => {
                    assert!(piece.len() <= PIECE);
                    all.extend_from_slice(&piece);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        assert_eq!(all, expected);
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
    }

    #[tokio::test]
    async fn a_status_ends_the_answer() {
        let (sender, queue) = mpsc::channel(4);
        sender.send(Err(Status::aborted("over"))).await.unwrap();
        let mut body = Responses::answer(queue).into_body();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "10");
        assert_eq!(trailers["grpc-message"], "over");
        assert!(body.frame().await.is_none());
    }
}
