//! `ringbuf`: the last bytes that were written.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::AsyncWrite;

/// Keeps so many bytes, and loses the oldest.
#[derive(Debug)]
pub struct Ring {
    bytes_max: usize,
    bytes: Mutex<VecDeque<u8>>,
}

impl Ring {
    /// Empty. At least one byte is kept.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max: bytes_max.max(1),
            bytes: Mutex::default(),
        }
    }

    /// Writes all of it.
    pub fn write(&self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(self.bytes_max)..];
        let mut bytes = self.bytes.lock();
        let lost = (bytes.len() + data.len()).saturating_sub(self.bytes_max);
        bytes.drain(..lost);
        bytes.extend(data);
    }

    /// Takes the oldest out, at most so many.
    pub fn read(&self, bytes_max: usize) -> Vec<u8> {
        let mut bytes = self.bytes.lock();
        let count = bytes_max.min(bytes.len());
        bytes.drain(..count).collect()
    }
}

/// Writes to a ring.
#[derive(Debug)]
pub struct RingWriter(pub Arc<Ring>);

impl AsyncWrite for RingWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.write(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept() {
        let ring = Ring::new(8);
        ring.write(b"0123456789abcdef");
        assert_eq!(ring.read(40), b"89abcdef");
        assert_eq!(ring.read(40), b"");
        ring.write(b"hello");
        assert_eq!(ring.read(3), b"hel");
        ring.write(b"1234567");
        assert_eq!(ring.read(9), b"o1234567");
        // QEMU dies by a ring without room.
        let ring = Ring::new(0);
        ring.write(b"abc");
        assert_eq!(ring.read(1), b"c");
    }
}
