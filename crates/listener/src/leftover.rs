//! What is left of a body whose request is refused.
//!
//! Some clients write all of a request before they read the answer. To them an answer that comes earlier, and then a closed
//! connection, is a broken pipe: they never learn why. So a bounded amount is read and thrown away. Does not own: bodies that are wanted.

use bytes::{Buf, Bytes};
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::BodyExt;
use std::pin::pin;
use std::time::Duration;
use surefoot_env::Clock;

/// Bytes of a refused body that are read, and for how long.
const DISCARDED_BYTES_MAX: u64 = 64 << 20;
const DISCARDED_FOR: Duration = Duration::from_secs(5);

/// Reads what is left of a body and throws it away, within bounds. To be called before the answer is given.
pub async fn discard<B>(headers: &HeaderMap, body: B, clock: &dyn Clock)
where
    B: Body<Data = Bytes>,
{
    let is_too_much = body.size_hint().lower() > DISCARDED_BYTES_MAX;
    // A client that asks first has not sent it, and will not.
    if body.is_end_stream() || is_too_much || headers.contains_key(header::EXPECT) {
        return;
    }
    let mut body = pin!(body);
    let discarding = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.into_data().map_or(0, |data| data.remaining() as u64);
            if bytes > DISCARDED_BYTES_MAX {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        // What was read is thrown away in any case.
        () = discarding => {}
        // A timer has nothing to lose.
        () = clock.sleep(DISCARDED_FOR) => {}
    }
}
