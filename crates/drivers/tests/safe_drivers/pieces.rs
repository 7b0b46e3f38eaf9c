//! A driver that sends a request on in parts, all at once, as a format does whose clusters lie here and
//! there.

#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::task::Poll;

use block::{Child, Driver, Io, IoFuture, NodeInfo, Result};

#[derive(Debug)]
pub struct Pieces {
    pub file: Child,
    /// Bytes in a part.
    pub piece: u64,
}

impl Pieces {
    async fn parts(&self, io: Io<'_>) -> Result<()> {
        let starts = (0..io.bytes).step_by(usize::try_from(self.piece).expect("small"));
        let part = |start: u64| io.slice(start..(start + self.piece).min(io.bytes));
        let mut under_way: Vec<_> = starts
            .map(|start| Some(Box::pin(self.file.submit(part(start)))))
            .collect();
        poll_fn(|cx| {
            for slot in &mut under_way {
                let Some(future) = slot else { continue };
                match future.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => *slot = None,
                    Poll::Ready(error) => return Poll::Ready(error),
                    Poll::Pending => {}
                }
            }
            match under_way.iter().any(Option::is_some) {
                true => Poll::Pending,
                false => Poll::Ready(Ok(())),
            }
        })
        .await
    }
}

impl Driver for Pieces {
    fn name(&self) -> &'static str {
        "pieces"
    }

    fn info(&self) -> NodeInfo {
        self.file.info()
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        IoFuture::new(self.parts(io))
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.file]
    }
}
