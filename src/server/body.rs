//! A request's body: all of it, within its limits, or a reason.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::time::timeout;

use super::error::ApiError;

/// Pieces of one body. Senders choose their size, and each costs more than its bytes.
const MAX_PIECES: usize = 65_536;

/// After this many pieces their mean size counts…
const FREE_PIECES: usize = 1024;

/// …and is at least this many bytes.
const MIN_MEAN_PIECE: usize = 16;

/// Any error of a body.
pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// Reads all of `body`: at most `max_bytes`, within `time`.
pub(super) async fn read<B>(body: B, max_bytes: usize, time: Duration) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let announced = body.size_hint().lower();
    if announced > u64::try_from(max_bytes).unwrap_or(u64::MAX) {
        return Err(ApiError::body_too_large(max_bytes));
    }
    match timeout(time, collect(body, max_bytes)).await {
        Ok(read) => read,
        Err(_elapsed) => Err(ApiError::body_too_slow()),
    }
}

async fn collect<B>(body: B, max_bytes: usize) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let mut body = pin!(body);
    let mut read = BytesMut::new();
    let mut pieces = 0;
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(ApiError::broken_body)?.into_data() else { continue };
        pieces += 1;
        if read.len() + piece.len() > max_bytes {
            return Err(ApiError::body_too_large(max_bytes));
        }
        if pieces == 1 && body.is_end_stream() {
            return Ok(piece); // the common case copies nothing
        }
        read.extend_from_slice(&piece);
        if pieces > MAX_PIECES || (pieces > FREE_PIECES && read.len() / pieces < MIN_MEAN_PIECE) {
            return Err(ApiError::malformed_request("the body is in too many pieces"));
        }
    }
    Ok(read.freeze())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::super::error::Code;
    use super::*;

    async fn check(pieces: usize, bytes_each: usize, expect: Result<usize, Code>) {
        let piece = || Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b' '; bytes_each])));
        let body = StreamBody::new(stream::iter(std::iter::repeat_with(piece).take(pieces)));
        let read = read(body, 2 * 1024 * 1024, Duration::from_secs(30)).await;
        assert_eq!(read.map(|body| body.len()).map_err(|error| error.code), expect, "{pieces} × {bytes_each}");
    }

    #[tokio::test]
    async fn a_body_is_bounded_in_bytes_and_in_pieces() {
        check(0, 0, Ok(0)).await;
        check(1, 2 * 1024 * 1024, Ok(2 * 1024 * 1024)).await;
        check(1, 2 * 1024 * 1024 + 1, Err(Code::PayloadTooLarge)).await;
        check(3, 1024 * 1024, Err(Code::PayloadTooLarge)).await;
        check(MAX_PIECES, 16, Ok(MAX_PIECES * 16)).await;
        check(MAX_PIECES + 1, 16, Err(Code::MalformedRequest)).await;
        check(FREE_PIECES, 1, Ok(FREE_PIECES)).await;
        check(FREE_PIECES + 1, 1, Err(Code::MalformedRequest)).await;
        check(FREE_PIECES + 1, 0, Err(Code::MalformedRequest)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let refusal = read(body, 10, Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(refusal.code, Code::RequestTimeout);
    }
}
