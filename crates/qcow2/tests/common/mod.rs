//! An iothread, and images opened on it.

#![allow(dead_code, reason = "each test target uses a part of it")]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use block::{Buffers, Io, Joined, Node, NodeInfo, Result};
use drivers::file::Medium;
use drivers::{FileDriver, FileOptions, OpenError};
use iothread::{Config, Engine, IoThread};
use standfast_qcow2::{CacheSizes, Qcow2, Qcow2Options};

pub struct Bench {
    thread: IoThread,
}

impl Bench {
    pub fn new() -> Self {
        let config = Config {
            engine: testkit::engine::is_threads().then_some(Engine::Threads),
            ..Config::default()
        };
        Self {
            thread: IoThread::spawn(config).expect("an iothread"),
        }
    }

    /// Node `disk0` on `file0`.
    pub fn open(
        &self,
        path: &Path,
        caches: CacheSizes,
    ) -> std::result::Result<Arc<Node>, OpenError> {
        self.open_as(path, |options| options.caches = caches)
    }

    /// The same, with other options.
    pub fn open_as(
        &self,
        path: &Path,
        change: impl FnOnce(&mut Qcow2Options),
    ) -> std::result::Result<Arc<Node>, OpenError> {
        let options = FileOptions {
            node_name: "file0".into(),
            path: Some(path.to_owned()),
            filename: path.display().to_string(),
            read_only: true,
            ..FileOptions::default()
        };
        let file = pollster::block_on(FileDriver::open(Medium::File, options))?;
        let mut options = Qcow2Options {
            info: NodeInfo {
                read_only: true,
                ..NodeInfo::default()
            },
            ..Qcow2Options::new("disk0", Node::new("file0", Box::new(file)))
        };
        change(&mut options);
        let driver = pollster::block_on(Qcow2::open(options))?;
        Ok(Node::new("disk0", Box::new(driver)))
    }

    /// Reads all there is.
    pub fn whole(&self, node: &Arc<Node>) -> Vec<u8> {
        let all = std::iter::once(0..node.driver().length());
        let read = self.read(node, all.collect()).pop();
        read.expect("one").expect("it can be read")
    }

    /// Reads all ranges at once; what was read, in order.
    pub fn read(&self, node: &Arc<Node>, ranges: Vec<Range<u64>>) -> Vec<Result<Vec<u8>>> {
        let node = Arc::clone(node);
        let all = move || async move {
            let tasks: Vec<_> = ranges
                .into_iter()
                .map(|range| {
                    let node = Arc::clone(&node);
                    iothread::spawn_local(async move { read_one(&node, range).await })
                })
                .collect();
            let mut results = Vec::new();
            for task in tasks {
                results.push(task.await);
            }
            results
        };
        let results = self.thread.handle().run_blocking(all);
        results.expect("the iothread runs")
    }
}

/// Into two buffers, of which the second begins at an odd address.
async fn read_one(node: &Node, range: Range<u64>) -> Result<Vec<u8>> {
    let bytes = usize::try_from(range.end - range.start).expect("small");
    let mut data = vec![0xee; bytes + 1];
    let (first, second) = data.split_at_mut(bytes / 3);
    let mut memory = Joined::new();
    memory.push_own(first);
    let end = second.len() - 1;
    memory.push_own(&mut second[..end]);
    let buffers: Buffers<'_> = memory.buffers();
    node.submit(Io::read(range.start, buffers)).await?;
    drop(memory);
    assert_eq!(data.pop(), Some(0xee), "nothing is written behind the end");
    Ok(data)
}

pub fn is_read_only(node: &Node) -> bool {
    node.read_only() && node.driver().info().read_only
}
