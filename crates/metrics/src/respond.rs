//! One request and its answer.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use crate::registry::Metrics;

/// Where the metrics are.
const PATH: &str = "/metrics";

/// Where it is said whether the process is well, if it says that.
const HEALTH: &str = "/healthz";

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers a request; what it has for a body nobody reads.
pub async fn respond<B>(
    metrics: Metrics,
    request: Request<B>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = |status, text: String| (status, PLAIN, text);
    let health = match request.uri().path() {
        HEALTH => metrics.check_health(),
        _ => None,
    };
    let (status, kind, body) = if request.uri().path() != PATH && health.is_none() {
        text(StatusCode::NOT_FOUND, format!("There is only {PATH}.\n"))
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allowed = "Metrics can only be read: use GET or HEAD.\n";
        text(StatusCode::METHOD_NOT_ALLOWED, allowed.to_owned())
    } else {
        match health {
            Some(Ok(())) => text(StatusCode::OK, "ok\n".to_owned()),
            Some(Err(why)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            None => match metrics.text() {
                Ok(body) => (StatusCode::OK, OPEN_METRICS, body),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
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

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn get(metrics: &Metrics, path: &str) -> (u16, String) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let request = Request::builder().uri(path).body(()).unwrap();
            let response = respond(metrics.clone(), request).await.unwrap();
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status, String::from_utf8(body.to_vec()).unwrap())
        })
    }

    #[test]
    fn health_is_said_if_somebody_knows_it() {
        let metrics = Metrics::default();
        assert_eq!(get(&metrics, "/healthz").0, 404);
        let well = Arc::new(AtomicBool::new(true));
        let known = Arc::clone(&well);
        metrics.health(move || match known.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("it hangs".to_owned()),
        });
        assert_eq!(get(&metrics, "/healthz"), (200, "ok\n".to_owned()));
        well.store(false, Ordering::Relaxed);
        assert_eq!(get(&metrics, "/healthz"), (503, "it hangs\n".to_owned()));
        assert_eq!(get(&metrics, "/metrics"), (200, "# EOF\n".to_owned()));
        assert_eq!(get(&metrics, "/health").0, 404);
    }
}
