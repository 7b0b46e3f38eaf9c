//! One HTTP request over a Unix socket: a connection for each, so that no answer is taken for
//! another one's.

use std::path::Path;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::peer;

/// Longest body of an answer, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// The process that listens.
    pub(crate) process: Option<i32>,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// Nobody listens.
    #[error("{0}")]
    Connect(std::io::Error),
    /// The connection broke, or what came is not HTTP.
    #[error("{0}")]
    Broken(String),
}

/// The text of an error with that of its causes: hyper's own says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Sends a request to the server at `path` and reads the whole answer.
pub(crate) async fn request(
    path: &Path,
    method: &Method,
    target: &str,
    body: &'static str,
) -> Result<Reply, HttpError> {
    let stream = UnixStream::connect(path)
        .await
        .map_err(HttpError::Connect)?;
    let process = peer::process(&stream);
    let broken = |e: hyper::Error| HttpError::Broken(chain(&e));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header("Host", "localhost")
        .header("Accept", "application/json");
    if !body.is_empty() {
        request = request.header("Content-Type", "application/json");
    }
    let request = request
        .body(Full::new(Bytes::from_static(body.as_bytes())))
        .map_err(|e| HttpError::Broken(chain(&e)))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| HttpError::Broken(chain(&*e)))?;
        Ok(Reply {
            status,
            body: body.to_bytes().into(),
            process,
        })
    };
    // The connection only moves bytes; how it ended, the exchange says.
    let moved = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        reply = exchange => reply,
        reply = moved => reply,
    }
}

/// The beginning of a text of a peer, fit for one line of a message.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const CHARS_MAX: usize = 200;
    let text = String::from_utf8_lossy(bytes);
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.retain(|c| !c.is_control());
    match words.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &words[..end]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_short_and_fit_on_a_line() {
        assert_eq!(excerpt(b" a\r\n\tb \x07c "), "a b c");
        assert_eq!(excerpt(&[0xff, b'x']), "\u{fffd}x");
        let long = excerpt("\u{e9}".repeat(1000).as_bytes());
        assert_eq!(long.chars().count(), 203);
    }
}
