//! Files that are written beside the control plane, and read beside it: a file system that hangs keeps
//! nobody from anything.

use std::fs::File;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

/// The threads need little.
const STACK_BYTES: usize = 128 << 10;

/// What may wait to be written, in pieces of at most [`PIECE_BYTES_MAX`].
const PIECES_MAX: usize = 256;

/// How much is read or written at once, in bytes.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// How long the last bytes may take.
const LAST_BYTES: Duration = Duration::from_secs(1);

enum Order {
    Write(Vec<u8>),
    Finish(SyncSender<()>),
}

/// Writes to a file by a thread of its own. Whoever writes waits for nobody; what finds no room is lost,
/// and the log says so.
#[derive(Clone, Debug)]
pub struct FileWriter {
    name: Arc<str>,
    orders: SyncSender<Order>,
    /// Something was lost, and told of.
    lost: Arc<AtomicBool>,
}

impl FileWriter {
    /// Writes to `file`, which is called `name`.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(file: File, name: &str) -> io::Result<Self> {
        let (orders, received) = sync_channel(PIECES_MAX);
        let lost = Arc::new(AtomicBool::new(false));
        let written = Written {
            name: name.into(),
            file,
            lost: Arc::clone(&lost),
        };
        let thread = thread::Builder::new().name("chardev".to_owned());
        thread
            .stack_size(STACK_BYTES)
            .spawn(move || written.run(&received))?;
        Ok(Self {
            name: name.into(),
            orders,
            lost,
        })
    }

    /// Puts it in; never waits.
    pub fn write(&self, data: &[u8]) {
        for piece in data.chunks(PIECE_BYTES_MAX) {
            if let Err(TrySendError::Full(_)) = self.orders.try_send(Order::Write(piece.to_vec()))
                && !self.lost.swap(true, Ordering::Relaxed)
            {
                let name = &self.name;
                tracing::warn!("chardev file '{name}' does not take what is written: that is lost");
            }
        }
    }

    /// Waits until all is written, at most a second.
    pub fn finish(&self) {
        let (done, is_done) = sync_channel(1);
        if self.orders.try_send(Order::Finish(done)).is_ok() {
            let _ = is_done.recv_timeout(LAST_BYTES);
        }
    }
}

struct Written {
    name: Arc<str>,
    file: File,
    lost: Arc<AtomicBool>,
}

impl Written {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            match order {
                Order::Write(data) => match self.file.write_all(&data) {
                    Ok(()) => self.lost.store(false, Ordering::Relaxed),
                    Err(error) => {
                        if !self.lost.swap(true, Ordering::Relaxed) {
                            let name = &self.name;
                            tracing::warn!("cannot write chardev file '{name}': {error}");
                        }
                    }
                },
                // Whoever waits no longer does not mind.
                Order::Finish(done) => drop(done.send(())),
            }
        }
    }
}

impl AsyncWrite for FileWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a file has, and then nothing, for ever: a monitor does not end with it.
#[derive(Debug)]
pub struct FileReader {
    pieces: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
}

impl FileReader {
    /// Reads `file` by a thread of its own.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(mut file: File) -> io::Result<Self> {
        let (sender, pieces) = mpsc::channel(1);
        let read = move || {
            loop {
                let mut piece = vec![0; PIECE_BYTES_MAX];
                match file.read(&mut piece) {
                    Ok(count @ 1..) => piece.truncate(count),
                    _ => return,
                }
                if sender.blocking_send(piece).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("chardev".to_owned());
        thread.stack_size(STACK_BYTES).spawn(read)?;
        Ok(Self {
            pieces,
            piece: Vec::new(),
        })
    }
}

impl AsyncRead for FileReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.piece.is_empty() {
            match self.pieces.poll_recv(cx) {
                Poll::Ready(Some(piece)) => self.piece = piece,
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
        let count = self.piece.len().min(buffer.remaining());
        buffer.put_slice(&self.piece[..count]);
        self.piece.drain(..count);
        Poll::Ready(Ok(()))
    }
}

/// Nothing ever comes.
#[derive(Debug)]
pub struct Silence;

impl AsyncRead for Silence {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_file_is_read_and_then_nothing_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        let text = "x".repeat(PIECE_BYTES_MAX + 1);
        std::fs::write(&path, &text).unwrap();
        let mut reader = FileReader::start(File::open(&path).unwrap()).unwrap();
        let mut found = vec![0; text.len()];
        reader.read_exact(&mut found).await.unwrap();
        assert_eq!(found, text.as_bytes());
        let more = tokio::time::timeout(Duration::from_millis(50), reader.read(&mut found)).await;
        assert!(more.is_err(), "a session would end here");
    }

    #[test]
    fn what_is_written_is_there_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let writer = FileWriter::start(File::create(&path).unwrap(), "out").unwrap();
        for n in 0..100 {
            writer.write(format!("{n}\n").as_bytes());
        }
        writer.finish();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 100);
    }

    /// A pipe that nobody reads stands for a file system that hangs.
    #[test]
    fn nobody_waits_for_a_file_that_hangs() {
        let (_read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let writer = FileWriter::start(write.into(), "pipe").unwrap();
        for _ in 0..2 * PIECES_MAX {
            writer.write(&[0; PIECE_BYTES_MAX]);
        }
        assert!(writer.lost.load(Ordering::Relaxed));
        writer.finish();
    }
}
