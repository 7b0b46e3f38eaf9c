//! Bytes to requests. No I/O.

use qapi::json::Stream;
use qapi::wire::{BadRequest, Request};
use qapi::{QmpError, Value};

/// What a client sends, taken apart.
#[derive(Debug, Default)]
pub struct Framing {
    stream: Stream,
}

impl Framing {
    /// At the start of a session.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and hands every request, or what is wrong with it, to `emit`. After an
    /// error the stream goes on. What is kept between calls is bounded by
    /// [`qapi::TEXT_BYTES_MAX`].
    pub fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(Result<Request, BadRequest>)) {
        self.stream.feed(bytes, |value| {
            emit(match value {
                Ok(value) => Request::parse(value).map_err(|bad| *bad),
                Err(e) => Err(BadRequest {
                    error: QmpError::generic(e.to_string()),
                    is_oob: false,
                    id: None,
                }),
            });
        });
    }
}

/// All requests in `bytes`, and what is wrong with those that are none.
pub fn requests(bytes: &[u8]) -> Vec<Result<Request, BadRequest>> {
    let mut all = Vec::new();
    Framing::new().feed(bytes, |request| all.push(request));
    all
}

/// A text of a result, for types that always have one.
pub(crate) fn value_of(result: impl serde::Serialize) -> Result<Value, QmpError> {
    serde_json::to_value(result).map_err(|e| QmpError::generic(format!("Internal error: {e}")))
}
