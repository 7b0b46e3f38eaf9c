//! One request and its answer.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use crate::registry::Metrics;

/// The one path that there is.
const PATH: &str = "/metrics";

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers a request; what it has for a body nobody reads.
pub async fn respond<B>(
    metrics: Metrics,
    request: Request<B>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = |status, text: String| (status, PLAIN, text);
    let (status, kind, body) = if request.uri().path() != PATH {
        text(StatusCode::NOT_FOUND, format!("There is only {PATH}.\n"))
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allowed = "Metrics can only be read: use GET or HEAD.\n";
        text(StatusCode::METHOD_NOT_ALLOWED, allowed.to_owned())
    } else {
        match metrics.text() {
            Ok(body) => (StatusCode::OK, OPEN_METRICS, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    Ok(response)
}
