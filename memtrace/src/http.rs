//! One bounded HTTP/1.1 GET over any stream: the Engine's unix socket, the target's TCP port.
//!
//! Whoever answers is untrusted: time, headers and body are bounded, redirects are not followed,
//! no proxy and no name is looked up. Nothing here connects.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT_ENCODING, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Most bytes of the status line and headers together.
const HEAD_BYTES: usize = 64 * 1024;

/// How much an answer may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte sent to the end of the answer's head, where that is to be shorter.
    pub head_timeout: Option<Duration>,
    /// For the whole exchange, from the first byte sent to the last received.
    pub timeout: Duration,
    pub body_bytes: usize,
}

/// An answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("failed to make a request for `{path}` at `{host}`: not a valid path or host")]
    Request { host: String, path: String },
    #[error("no answer within {} ms", .0.as_millis())]
    NoAnswer(Duration),
    #[error("no complete answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the answer is not valid HTTP")]
    Protocol(#[source] hyper::Error),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("the answer broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// GETs `path` (with its query) from whoever is at the other end of `stream`.
///
/// `host` only fills the `Host` header. The stream is closed afterwards. Needs a tokio runtime
/// with time enabled; spawns nothing.
pub async fn get<S>(
    stream: S,
    host: &str,
    path: &str,
    limits: Limits,
) -> Result<Response, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let invalid = || HttpError::Request { host: host.to_string(), path: path.to_string() };
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| invalid())?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(host).map_err(|_| invalid())?);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let agent = HeaderValue::from_static(concat!("memtrace/", env!("CARGO_PKG_VERSION")));
    headers.insert(USER_AGENT, agent);
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));

    let exchange = async {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(HttpError::Protocol)?;
        let answer = async {
            let head = sender.send_request(request);
            let response = match limits.head_timeout {
                Some(limit) => tokio::time::timeout(limit, head)
                    .await
                    .map_err(|_| HttpError::NoAnswer(limit))?,
                None => head.await,
            }
            .map_err(HttpError::Protocol)?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), limits.body_bytes)
                .collect()
                .await
                .map_err(|error| {
                    if error.is::<LengthLimitError>() {
                        HttpError::TooLong(limits.body_bytes)
                    } else {
                        HttpError::Body(error)
                    }
                })?
                .to_bytes();
            Ok(Response { status, body })
        };
        // The connection does the reading and writing; its end, good or bad, reaches `answer`
        // through hyper's own channel.
        let drive = async {
            let _ended = connection.await;
            std::future::pending::<std::convert::Infallible>().await
        };
        tokio::select! {
            answer = answer => answer,
            never = drive => match never {},
        }
    };
    tokio::time::timeout(limits.timeout, exchange)
        .await
        .unwrap_or(Err(HttpError::TimedOut(limits.timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LIMITS: Limits =
        Limits { head_timeout: None, timeout: Duration::from_millis(300), body_bytes: 1000 };

    /// Asks a server that reads the request and then sends `answer`, closing if `close`.
    fn ask(answer: Vec<u8>, close: bool) -> (Result<Response, HttpError>, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, mut server) = tokio::io::duplex(64);
            let serve = async {
                let mut request = vec![0; 4096];
                let mut length = 0;
                while !request[..length].ends_with(b"\r\n\r\n") {
                    length += server.read(&mut request[length..]).await.unwrap();
                }
                request.truncate(length);
                let _ = server.write_all(&answer).await;
                (String::from_utf8(request).unwrap(), (!close).then_some(server))
            };
            let (response, (request, _open)) =
                tokio::join!(get(client, "d", "/x?y=1", LIMITS), serve);
            (response, request)
        })
    }

    #[test]
    fn an_answer_with_a_length_comes_whole_though_the_connection_stays_open() {
        let (response, request) =
            ask(b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nhello".to_vec(), false);
        let response = response.unwrap();
        assert_eq!((response.status, &response.body[..]), (404, &b"hello"[..]));
        assert!(request.starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("host: d\r\n"), "{request}");
    }

    #[test]
    fn chunks_and_answers_that_end_with_the_connection_are_read() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(&ask(chunked.to_vec(), false).0.unwrap().body[..], b"abcde");
        assert_eq!(&ask(b"HTTP/1.1 200 OK\r\n\r\nabc".to_vec(), true).0.unwrap().body[..], b"abc");
    }

    #[test]
    fn an_endless_body_is_cut_off() {
        let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        answer.extend([b'x'; 1001]);
        assert!(matches!(ask(answer, false).0, Err(HttpError::TooLong(1000))));
    }

    #[test]
    fn endless_headers_are_cut_off() {
        let mut answer = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        answer.extend(vec![b'x'; HEAD_BYTES + 1]);
        assert!(matches!(ask(answer, false).0, Err(HttpError::Protocol(_))));
    }

    #[test]
    fn silence_times_out() {
        assert!(matches!(ask(Vec::new(), false).0, Err(HttpError::TimedOut(_))));
        let slow = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel".to_vec();
        assert!(matches!(ask(slow, false).0, Err(HttpError::TimedOut(_))));
    }

    #[test]
    fn a_broken_answer_is_an_error() {
        assert!(matches!(ask(b"SSH-2.0-x\r\n\r\n".to_vec(), true).0, Err(HttpError::Protocol(_))));
        assert!(matches!(ask(Vec::new(), true).0, Err(HttpError::Protocol(_))));
        let torn = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel".to_vec();
        assert!(matches!(ask(torn, true).0, Err(HttpError::Body(_))));
    }

    #[test]
    fn a_path_that_would_break_the_request_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (client, _server) = tokio::io::duplex(64);
        let response = runtime.block_on(get(client, "d", "/x\r\nEvil: 1", LIMITS));
        assert!(matches!(response, Err(HttpError::Request { .. })));
    }
}
