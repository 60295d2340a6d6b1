//! One bounded gRPC call with one answer, over a stream that is already open: a container runtime's
//! unix socket.
//!
//! Whoever answers is untrusted: time and size are bounded, an answer that is compressed or comes in
//! several messages is refused. Nothing here connects, and nothing is retried.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::sanitize::visible_up_to;

/// One byte that says whether the message is compressed, four for its length.
const PREFIX_BYTES: usize = 5;
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// The method, or the whole service, is not there.
pub const UNIMPLEMENTED: u32 = 12;
const MESSAGE_CHARACTERS: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error("failed to make a request for `{0}`")]
    Request(String),
    #[error("no complete answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the answer is not HTTP/2")]
    Protocol(#[source] hyper::Error),
    #[error("it answered with HTTP status {0}")]
    Http(u16),
    #[error("it answered with gRPC status {code}: {message}")]
    Status { code: u32, message: String },
    #[error("the answer tells no gRPC status")]
    NoStatus,
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("the answer broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is not one plain message")]
    Framing,
    #[error("the answer is not the message that was asked for")]
    Decode(#[source] prost::DecodeError),
}

impl GrpcError {
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Status { code: UNIMPLEMENTED, .. })
    }
}

/// Calls `path` (`/package.Service/Method`) and gives its answer of at most `most` bytes.
///
/// Needs a tokio runtime with time enabled; one task is spawned, which ends with the call.
pub async fn call<S, Q, A>(
    stream: S,
    path: &str,
    question: &Q,
    timeout: Duration,
    most: usize,
) -> Result<A, GrpcError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Q: Message,
    A: Message + Default,
{
    let request = request(path, question)?;
    let exchange = async {
        let builder = http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(GrpcError::Protocol)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(GrpcError::Protocol)?;
            let (head, body) = response.into_parts();
            if !head.status.is_success() {
                return Err(GrpcError::Http(head.status.as_u16()));
            }
            // An error may come without a body: its status is among the headers then.
            if let Some(status) = status_in(&head.headers) {
                status?;
            }
            let collected = Limited::new(body, most).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    GrpcError::TooLong(most)
                } else {
                    GrpcError::Body(error)
                }
            })?;
            match collected.trailers().or(Some(&head.headers)).and_then(status_in) {
                Some(status) => status?,
                None => return Err(GrpcError::NoStatus),
            }
            A::decode(message_of(&collected.to_bytes())?).map_err(GrpcError::Decode)
        };
        // The connection's end, good or bad, reaches `answer` through hyper's own channel.
        let drive = async {
            let _ended = connection.await;
            std::future::pending::<std::convert::Infallible>().await
        };
        tokio::select! {
            answer = answer => answer,
            never = drive => match never {},
        }
    };
    tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(GrpcError::TimedOut(timeout)))
}

fn request(path: &str, question: &impl Message) -> Result<Request<Full<Bytes>>, GrpcError> {
    let invalid = || GrpcError::Request(path.to_owned());
    let length = question.encoded_len();
    let mut body = BytesMut::with_capacity(PREFIX_BYTES + length);
    body.put_u8(0);
    body.put_u32(u32::try_from(length).map_err(|_| invalid())?);
    question.encode(&mut body).map_err(|_| invalid())?;
    let mut request = Request::new(Full::new(body.freeze()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("http://localhost{path}").parse::<Uri>().map_err(|_| invalid())?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    let agent = HeaderValue::from_static(concat!("memtrace/", env!("CARGO_PKG_VERSION")));
    headers.insert(USER_AGENT, agent);
    Ok(request)
}

/// `grpc-status`, where it is told.
fn status_in(headers: &HeaderMap) -> Option<Result<(), GrpcError>> {
    let status = headers.get(STATUS)?;
    // What is no number is no success.
    let code = status.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
    if code == 0 {
        return Some(Ok(()));
    }
    let message = headers.get(MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
    let message = String::from_utf8_lossy(message);
    let message = visible_up_to(&message, MESSAGE_CHARACTERS).into_owned();
    Some(Err(GrpcError::Status { code, message }))
}

/// The message behind its prefix.
fn message_of(body: &[u8]) -> Result<&[u8], GrpcError> {
    let (prefix, message) = body.split_first_chunk::<PREFIX_BYTES>().ok_or(GrpcError::Framing)?;
    let [compressed, length @ ..] = *prefix;
    let told = usize::try_from(u32::from_be_bytes(length)).map_err(|_| GrpcError::Framing)?;
    if compressed != 0 || told != message.len() {
        return Err(GrpcError::Framing);
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_plain_message_is_taken_and_nothing_else() {
        assert_eq!(message_of(b"\0\0\0\0\x02ab").unwrap(), b"ab");
        assert_eq!(message_of(b"\0\0\0\0\0").unwrap(), b"");
        let refused: [&[u8]; 5] =
            [b"", b"\0\0\0\0", b"\x01\0\0\0\x02ab", b"\0\0\0\0\x03ab", b"\0\xff\xff\xff\xffab"];
        for body in refused {
            assert!(matches!(message_of(body), Err(GrpcError::Framing)), "{body:?}");
        }
    }

    #[test]
    fn a_status_that_is_not_zero_is_an_error_fit_for_a_terminal() {
        let headers = |pairs: &[(HeaderName, &'static [u8])]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(name, HeaderValue::from_bytes(value).unwrap());
            }
            headers
        };
        assert!(status_in(&headers(&[])).is_none());
        assert!(status_in(&headers(&[(STATUS, b"0")])).unwrap().is_ok());
        let error =
            status_in(&headers(&[(STATUS, b"12"), (MESSAGE, b"unknown \xe2\x80\xae service")]));
        let error = error.unwrap().unwrap_err();
        assert!(error.is_unimplemented());
        assert!(error.to_string().contains(r"unknown \u{202e} service"), "{error}");
        assert!(status_in(&headers(&[(STATUS, b"ok")])).unwrap().is_err());
    }

    #[test]
    fn who_does_not_answer_is_given_up_and_who_speaks_something_else_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limit = Duration::from_millis(200);
        runtime.block_on(async {
            let (client, _silent) = tokio::io::duplex(64);
            let error = call::<_, (), ()>(client, "/x/Y", &(), limit, 100).await.unwrap_err();
            assert!(matches!(error, GrpcError::TimedOut(_)), "{error}");
            let (client, mut other) = tokio::io::duplex(4096);
            let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut other, answer).await.unwrap();
            let error = call::<_, (), ()>(client, "/x/Y", &(), limit, 100).await.unwrap_err();
            assert!(matches!(error, GrpcError::Protocol(_) | GrpcError::TimedOut(_)), "{error}");
        });
    }
}
