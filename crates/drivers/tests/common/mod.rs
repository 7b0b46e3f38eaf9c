//! What the integration tests share: an iothread, and requests with buffers of their own.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod format;

use std::sync::Arc;

use block::{Driver, Io, Joined, Node, Operation, Result};
use iothread::{Config, Engine, Handle, IoThread};

/// One operation that owns its data.
#[derive(Clone, Debug)]
pub struct Op {
    pub op: Operation,
    pub offset: u64,
    pub bytes: u64,
    /// Data of a write, fill of a read.
    pub data: Vec<u8>,
    /// Lengths of the buffers; what is left over goes to one more.
    pub split: Vec<usize>,
    /// Distance of each buffer from an aligned address.
    pub skew: usize,
    pub fua: bool,
    pub losses_accepted: u32,
}

impl Op {
    pub fn new(op: Operation, offset: u64, bytes: u64) -> Self {
        Self {
            op,
            offset,
            bytes,
            data: Vec::new(),
            split: Vec::new(),
            skew: 0,
            fua: false,
            losses_accepted: 0,
        }
    }

    pub fn read(offset: u64, bytes: u64) -> Self {
        let mut op = Self::new(Operation::Read, offset, bytes);
        op.data = vec![0xee; usize::try_from(bytes).expect("small")];
        op
    }

    pub fn write(offset: u64, data: Vec<u8>) -> Self {
        let mut op = Self::new(Operation::Write, offset, data.len() as u64);
        op.data = data;
        op
    }

    pub fn flush() -> Self {
        Self::new(Operation::Flush, 0, 0)
    }

    pub fn zeroes(offset: u64, bytes: u64, unmap: bool) -> Self {
        Self::new(Operation::WriteZeroes { unmap }, offset, bytes)
    }

    pub fn discard(offset: u64, bytes: u64) -> Self {
        Self::new(Operation::Discard, offset, bytes)
    }

    /// Runs it on this iothread; a read leaves its data in `data`.
    pub async fn run(&mut self, node: &Node) -> Result<()> {
        const ALIGN: usize = 4096;
        let mut lengths = Vec::new();
        let mut left = self.data.len();
        for &part in &self.split {
            let part = part.min(left);
            lengths.push(part);
            left -= part;
        }
        if left > 0 {
            lengths.push(left);
        }
        let mut buffers: Vec<Vec<u8>> = Vec::new();
        let mut done = 0;
        for &length in &lengths {
            let mut buffer = vec![0u8; length + 2 * ALIGN];
            let start = buffer.as_ptr().align_offset(ALIGN) + self.skew;
            buffer[start..start + length].copy_from_slice(&self.data[done..done + length]);
            done += length;
            buffers.push(buffer);
        }
        let mut memory = Joined::new();
        for (buffer, &length) in buffers.iter_mut().zip(&lengths) {
            let start = buffer.as_ptr().align_offset(ALIGN) + self.skew;
            memory.push_own(&mut buffer[start..start + length]);
        }
        let result = node
            .submit(Io {
                op: self.op,
                offset: self.offset,
                bytes: self.bytes,
                buffers: memory.buffers(),
                fua: self.fua,
                losses_accepted: self.losses_accepted,
            })
            .await;
        if self.op == Operation::Read {
            let mut done = 0;
            for (buffer, &length) in buffers.iter().zip(&lengths) {
                let start = buffer.as_ptr().align_offset(ALIGN) + self.skew;
                self.data[done..done + length].copy_from_slice(&buffer[start..start + length]);
                done += length;
            }
        }
        result
    }
}

#[allow(unused_macros, reason = "each test target uses a part of it")]
/// Makes a module of each of these functions, which has the function as a test on each engine.
macro_rules! on_both_engines {
    ($($test:ident),+ $(,)?) => {
        $(mod $test {
            use iothread::Engine;

            #[test]
            fn io_uring() {
                super::$test(Engine::IoUring);
            }

            #[test]
            fn threads() {
                super::$test(Engine::Threads);
            }
        })+
    };
}
#[allow(unused_imports, reason = "each test target uses a part of it")]
pub(crate) use on_both_engines;

/// Where a test does not say.
pub fn engine_of_the_run() -> Option<Engine> {
    testkit::engine::is_threads().then_some(Engine::Threads)
}

/// An iothread to run operations on.
pub struct Bench {
    thread: IoThread,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            thread: IoThread::spawn(Config {
                engine: engine_of_the_run(),
                ..Config::default()
            })
            .expect("an iothread"),
        }
    }

    /// On one of this engine, whatever the run is for.
    pub fn on(engine: Engine) -> Self {
        let config = Config {
            engine: Some(engine),
            ..Config::default()
        };
        Self {
            thread: IoThread::spawn(config).expect("an iothread"),
        }
    }

    pub fn handle(&self) -> Handle {
        self.thread.handle()
    }

    pub fn run(&self, node: &Arc<Node>, mut op: Op) -> Result<Vec<u8>> {
        let node = Arc::clone(node);
        self.thread
            .handle()
            .run_blocking(move || async move {
                op.run(&node).await?;
                Ok(op.data)
            })
            .expect("the iothread runs")
    }

    /// Runs all at once; results in order.
    pub fn run_all(&self, node: &Arc<Node>, ops: Vec<Op>) -> Vec<Result<Vec<u8>>> {
        let node = Arc::clone(node);
        self.thread
            .handle()
            .run_blocking(move || async move {
                let tasks: Vec<_> = ops
                    .into_iter()
                    .map(|mut op| {
                        let node = Arc::clone(&node);
                        iothread::spawn_local(async move {
                            op.run(&node).await?;
                            Ok(op.data)
                        })
                    })
                    .collect();
                let mut results = Vec::new();
                for task in tasks {
                    results.push(task.await);
                }
                results
            })
            .expect("the iothread runs")
    }
}

/// A node around a driver.
pub fn node(driver: impl Driver + 'static) -> Arc<Node> {
    Node::new("disk0", Box::new(driver))
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64)
        .map(|at| {
            let mixed = (at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed.to_be_bytes()[0] | 1
        })
        .collect()
}
