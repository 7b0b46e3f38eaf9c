//! `null-co` and `null-aio`: disks of no storage. Writes vanish; reads leave the buffers alone, so that what
//! they cost is the path and not the memory, unless `read-zeroes` asks for zeroes. `null-co` answers at once,
//! `null-aio` in a later turn of the iothread, as storage does.

use std::future::ready;
use std::ops::Range;
use std::time::Duration;

use block::{
    BoxFuture, Capabilities, Driver, Extent, Io, IoFuture, NodeInfo, Operation, Reopen, Result,
    Stored,
};

use crate::pseudo_filename;

/// Length of a disk that was given none, in bytes.
const SIZE_DEFAULT: u64 = 1 << 30;

/// Options of [`NullCo`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NullOptions {
    /// Length in bytes; 1 GiB by default.
    pub size: Option<u64>,
    /// Whether reads fill the buffers with zeroes; by default they do not.
    pub read_zeroes: Option<bool>,
    /// How long each request takes at least, in nanoseconds.
    pub latency_ns: u64,
    /// Whether it is `null-aio`: nothing is answered at once.
    pub asynchronous: bool,
    /// How the node is opened beside.
    pub info: NodeInfo,
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

    fn reads_zeroes(&self) -> bool {
        self.options.read_zeroes.unwrap_or(false)
    }
}

impl Driver for NullCo {
    fn name(&self) -> &'static str {
        match self.options.asynchronous {
            false => "null-co",
            true => "null-aio",
        }
    }

    fn info(&self) -> NodeInfo {
        let mut options = Vec::new();
        if let Some(read_zeroes) = self.options.read_zeroes {
            options.push(("read-zeroes", read_zeroes.into()));
        }
        if let Some(size) = self.options.size {
            options.push(("size", size.into()));
        }
        NodeInfo {
            filename: match options.is_empty() {
                true => format!("{}://", self.name()),
                false => pseudo_filename::of(self.name(), &options, None),
            },
            ..self.options.info.clone()
        }
    }

    fn actual_size(&self) -> Option<u64> {
        Some(0)
    }

    fn length(&self) -> u64 {
        self.options.size.unwrap_or(SIZE_DEFAULT)
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let zeroes = self.reads_zeroes() && io.op == Operation::Read;
        let latency = self.options.latency_ns;
        if latency == 0 && !self.options.asynchronous {
            if zeroes {
                io.buffers.fill_zero();
            }
            return IoFuture::ready(Ok(()));
        }
        IoFuture::new(async move {
            match latency {
                0 => iothread::yield_now().await,
                latency => iothread::time::sleep(Duration::from_nanos(latency)).await,
            }
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
            zero: self.reads_zeroes(),
            ..Extent::data(bytes, stored)
        };
        Box::pin(ready(Ok(vec![all])))
    }
}

/// Nothing is kept.
impl Reopen for NullCo {}

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
        for (latency_ns, asynchronous) in
            [(0, false), (0, true), (2_000_000, false), (2_000_000, true)]
        {
            for read_zeroes in [None, Some(false), Some(true)] {
                let (buffer, took) = read(NullOptions {
                    read_zeroes,
                    latency_ns,
                    asynchronous,
                    ..NullOptions::default()
                });
                let expected = if read_zeroes == Some(true) { 0 } else { 0xee };
                assert_eq!(buffer, [expected; 64]);
                assert!(took >= Duration::from_nanos(latency_ns));
            }
        }
    }

    #[test]
    fn null_aio_answers_nothing_at_once() {
        for asynchronous in [false, true] {
            let options = NullOptions {
                asynchronous,
                ..NullOptions::default()
            };
            let null = NullCo::new(options);
            for io in [Io::flush(), Io::discard(0, 512)] {
                assert_eq!(null.submit(io).is_ready(), !asynchronous, "{}", io.op);
            }
            assert_eq!(null.info().filename, format!("{}://", null.name()));
        }
    }

    /// As with QEMU: what makes it another disk is part of its name.
    #[test]
    fn its_name_tells_what_was_said() {
        for (size, read_zeroes, name) in [
            (None, None, "null-co://"),
            (
                Some(512),
                None,
                r#"json:{"driver": "null-co", "size": 512}"#,
            ),
            (
                None,
                Some(false),
                r#"json:{"read-zeroes": false, "driver": "null-co"}"#,
            ),
        ] {
            let null = NullCo::new(NullOptions {
                size,
                read_zeroes,
                latency_ns: 5,
                ..NullOptions::default()
            });
            assert_eq!(null.info().filename, name);
            assert_eq!(null.length(), size.unwrap_or(1 << 30));
        }
    }
}
