//! `null-co`: a disk of no storage. Writes vanish; reads leave the buffers alone, so that what they
//! cost is the path and not the memory, unless `read-zeroes` asks for zeroes.

use std::future::ready;
use std::ops::Range;
use std::time::Duration;

use block::{
    BoxFuture, Capabilities, Driver, Extent, Io, IoFuture, NodeInfo, Operation, Reopen, Result,
    Stored,
};

/// Options of [`NullCo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullOptions {
    /// Length in bytes; 1 GiB by default.
    pub size: u64,
    /// Whether reads fill the buffers with zeroes.
    pub read_zeroes: bool,
    /// How long each request takes, in nanoseconds.
    pub latency_ns: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Default for NullOptions {
    fn default() -> Self {
        Self {
            size: 1 << 30,
            read_zeroes: false,
            latency_ns: 0,
            read_only: false,
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct NullCo {
    options: NullOptions,
}

impl NullCo {
    /// Cannot fail: there is nothing to open.
    pub fn new(options: NullOptions) -> Self {
        Self { options }
    }
}

impl Driver for NullCo {
    fn name(&self) -> &'static str {
        "null-co"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            filename: "null-co://".to_owned(),
            read_only: self.options.read_only,
            ..NodeInfo::default()
        }
    }

    fn actual_size(&self) -> Option<u64> {
        Some(0)
    }

    fn length(&self) -> u64 {
        self.options.size
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let zeroes = self.options.read_zeroes && io.op == Operation::Read;
        if self.options.latency_ns == 0 {
            if zeroes {
                io.buffers.fill_zero();
            }
            return IoFuture::ready(Ok(()));
        }
        let latency = Duration::from_nanos(self.options.latency_ns);
        IoFuture::new(async move {
            iothread::time::sleep(latency).await;
            if zeroes {
                io.buffers.fill_zero();
            }
            Ok(())
        })
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            reopen: Some(self),
            ..Capabilities::default()
        }
    }

    /// Nothing occupies space; what is read is not always zeroes.
    fn block_status(&self, range: Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
        let (bytes, stored) = (range.end - range.start, Stored::Here(range.start));
        let all = Extent {
            data: false,
            zero: self.options.read_zeroes,
            ..Extent::data(bytes, stored)
        };
        Box::pin(ready(Ok(vec![all])))
    }
}

impl Reopen for NullCo {
    /// Nothing is kept.
    fn hand_over(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::{Joined, Node};
    use iothread::{Config, IoThread};
    use std::time::Instant;

    fn read(options: NullOptions) -> (Vec<u8>, Duration) {
        let thread = IoThread::spawn(Config::default()).expect("an iothread");
        thread
            .handle()
            .run_blocking(move || async move {
                let node = Node::new("null0", Box::new(NullCo::new(options)));
                let mut buffer = vec![0xee; 64];
                let mut memory = Joined::new();
                memory.push_own(&mut buffer);
                let begin = Instant::now();
                node.submit(Io::read((1 << 30) - 64, memory.buffers()))
                    .await
                    .expect("inside the node");
                (buffer, begin.elapsed())
            })
            .expect("the iothread runs")
    }

    #[test]
    fn buffers_are_left_alone_unless_zeroes_are_asked_for() {
        for latency_ns in [0, 2_000_000] {
            for read_zeroes in [false, true] {
                let (buffer, took) = read(NullOptions {
                    read_zeroes,
                    latency_ns,
                    ..NullOptions::default()
                });
                let expected = if read_zeroes { 0 } else { 0xee };
                assert_eq!(buffer, [expected; 64]);
                assert!(took >= Duration::from_nanos(latency_ns));
            }
        }
    }
}
