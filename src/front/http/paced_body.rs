//! The body of a response on its way to a client, which must read it at the pace of every client.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::access_log::LiveEntry;
use super::phase::{RequestGuard, ResponseGuard, State};
use crate::handler::body::Body;
use crate::handler::memory_budget::release_when_sent;

/// A body that the client has a deadline for, whenever there is something that it has not taken.
pub(super) struct PacedBody {
    body: Body,
    state: Arc<State>,
    /// The deadline for taking what comes next. There is none while the body waits for its script: then the client has
    /// taken everything. An HTTP/2 client that takes nothing keeps the body from being asked for more.
    next: Option<ResponseGuard>,
    /// What a body that is live keeps until its end.
    live: Option<Live>,
}

struct Live {
    entry: LiveEntry,
    _request: RequestGuard,
}

impl PacedBody {
    /// A body that is known from the start.
    pub(super) fn known(body: Body, state: Arc<State>) -> PacedBody {
        let next = Some(state.begin_response());
        PacedBody { body, state, next, live: None }
    }

    /// A body that comes while a script runs. Until its end, the connection counts as serving the request; then the
    /// request is logged.
    pub(super) fn live(
        body: Body,
        state: Arc<State>,
        entry: LiveEntry,
        request: RequestGuard,
    ) -> PacedBody {
        let live = Some(Live { entry, _request: request });
        PacedBody { live, ..PacedBody::known(body, state) }
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            this.next = None;
            return Poll::Pending;
        };
        let guard = this.next.take().unwrap_or_else(|| this.state.begin_response());
        let Some(Ok(frame)) = frame else {
            return Poll::Ready(None);
        };
        if let (Some(live), Some(piece)) = (&mut this.live, frame.data_ref()) {
            live.entry.size += piece.len() as u64;
        }
        if !this.body.is_end_stream() {
            this.next = Some(this.state.begin_response());
        }
        Poll::Ready(Some(Ok(frame.map_data(|piece| release_when_sent(piece, guard)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
