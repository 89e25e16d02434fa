//! The body of a response: known from the start, or made while a script runs.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

/// The body of a response. It never fails: a platform such as AWS Lambda has no way to say that it did.
#[derive(Debug)]
pub enum Body {
    /// Pieces that are all known, so that the length is known too.
    Known(VecDeque<Bytes>),
    /// Pieces that come while a script runs.
    Live(UnsyncBoxBody<Bytes, Infallible>),
}

impl Body {
    /// A body whose pieces come from `body`.
    pub(super) fn live(
        body: impl HttpBody<Data = Bytes, Error = Infallible> + Send + 'static,
    ) -> Body {
        Body::Live(UnsyncBoxBody::new(body))
    }

    /// The pieces of a body that is known.
    ///
    /// # Panics
    /// If the body is live.
    pub(super) fn known(self) -> VecDeque<Bytes> {
        match self {
            Body::Known(pieces) => pieces,
            Body::Live(_) => panic!("BUG: a buffered response is known"),
        }
    }

    /// The next piece; `None` after the last one.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            let Ok(frame) = self.frame().await?;
            if let Ok(piece) = frame.into_data() {
                return Some(piece);
            }
        }
    }

    /// The whole body, once it has ended.
    pub async fn collected(mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await {
            whole.extend_from_slice(&piece);
        }
        whole
    }
}

impl Default for Body {
    fn default() -> Body {
        Body::Known(VecDeque::new())
    }
}

impl From<Bytes> for Body {
    fn from(whole: Bytes) -> Body {
        Body::Known(VecDeque::from([whole]))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Body::Known(pieces) => Poll::Ready(pieces.pop_front().map(Frame::data).map(Ok)),
            Body::Live(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Known(pieces) => pieces.iter().all(Bytes::is_empty),
            Body::Live(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Known(pieces) => {
                SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum())
            }
            Body::Live(body) => body.size_hint(),
        }
    }
}
