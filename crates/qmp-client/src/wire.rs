//! JSON values over a stream.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use qapi::Value;
use qapi::json::{Limits, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::{ClientError, ProtocolError};
use crate::limits::ANSWER_LIMITS;

/// How much is read at once.
const READ_BYTES: usize = 16 << 10;

/// A stream of JSON values in both directions. A value ends with its last bracket, not with a line:
/// servers may send several values in a line, or one on many lines (`pretty=on`).
#[derive(Debug)]
pub struct Wire<S> {
    stream: S,
    parser: Stream,
    /// What the bytes that were read last have completed: no more than there were bytes.
    values: VecDeque<Value>,
    /// Nothing comes behind `values`.
    end: Option<ClientError>,
    output: Vec<u8>,
    /// How many bytes of `output` have been written.
    written: usize,
    /// Nothing can be written any more.
    write_error: Option<io::Error>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Over a stream of a server whose answers may be as long as [`ANSWER_LIMITS`].
    pub fn new(stream: S) -> Self {
        Self::with_limits(stream, ANSWER_LIMITS)
    }

    /// Over a stream of a server who has no reason for longer values than that.
    pub fn with_limits(stream: S, limits: Limits) -> Self {
        Self {
            stream,
            parser: Stream::with_limits(limits),
            values: VecDeque::new(),
            end: None,
            output: Vec::new(),
            written: 0,
            write_error: None,
        }
    }

    /// Queues bytes. They are written by [`Self::flush`], and by whoever waits for a value.
    pub fn push(&mut self, bytes: &[u8]) {
        // What cannot be written is not kept either.
        if self.write_error.is_none() {
            self.output.extend_from_slice(bytes);
        }
    }

    /// Writes what is queued. If it is dropped, the rest is written later.
    ///
    /// # Errors
    /// If that fails.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        poll_fn(|cx| self.poll_write(cx)).await;
        match &self.write_error {
            None => Ok(()),
            Some(error) => Err(same(error).into()),
        }
    }

    /// The next value; meanwhile what is queued is written. Loses nothing if it is dropped.
    ///
    /// # Errors
    /// The end of the stream, whatever ended it. If nothing can be written any more, what the other
    /// side has said still comes before that error.
    pub async fn read(&mut self) -> Result<Value, ClientError> {
        poll_fn(|cx| {
            // A server that waits until its answer is taken does not take commands.
            let _ = self.poll_write(cx);
            self.poll_read(cx)
        })
        .await
    }

    /// Nothing of this stream can be trusted any more.
    pub(crate) fn fail(&mut self, error: &ClientError) {
        self.values.clear();
        self.end = Some(error.clone());
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let done = ready!(self.poll_write_all(cx));
        self.output.clear();
        self.written = 0;
        if let Err(error) = done {
            self.write_error = Some(error);
        }
        Poll::Ready(())
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Value, ClientError>> {
        loop {
            if let Some(value) = self.values.pop_front() {
                return Poll::Ready(Ok(value));
            }
            if let Some(end) = &self.end {
                return Poll::Ready(Err(end.clone()));
            }
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Err(error) => self.end = Some(error.into()),
                Ok(()) if buffer.filled().is_empty() => {
                    let write_error = self.write_error.as_ref().map(same);
                    self.end = Some(write_error.map_or(ClientError::Closed, ClientError::from));
                }
                Ok(()) => self.take(buffer.filled()),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Self {
            parser,
            values,
            end,
            ..
        } = self;
        parser.feed(bytes, |value| match value {
            _ if end.is_some() => {}
            Ok(value) => values.push_back(value),
            Err(error) => *end = Some(ProtocolError::Json(error).into()),
        });
    }
}

/// Errors of the system cannot be cloned.
fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
