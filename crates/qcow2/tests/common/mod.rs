//! An iothread, and images opened on it.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod disk;
pub mod qemu_check;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Access, Attachment, Buffers, Io, Joined, Node, NodeInfo, Permissions, Result};
use drivers::file::{Discard, Medium};
use drivers::{FileDriver, FileOptions, OpenError};
use iothread::{Config, Engine, IoThread};
use standfast_qcow2::{Backing, CacheSizes, Qcow2, Qcow2Options};

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

    /// Node `disk0` on `file0`, read-only.
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
        open(Medium::File, path, true, change)
    }

    /// The same for reading and writing.
    pub fn open_writable(
        &self,
        medium: Medium,
        path: &Path,
        caches: CacheSizes,
    ) -> std::result::Result<Arc<Node>, OpenError> {
        self.writable(medium, path, |options| options.caches = caches)
    }

    /// The same, with other options.
    pub fn writable(
        &self,
        medium: Medium,
        path: &Path,
        change: impl FnOnce(&mut Qcow2Options),
    ) -> std::result::Result<Arc<Node>, OpenError> {
        let file = open_file(medium, path, false)?;
        Self::writable_on(file, change)
    }

    /// An image in a file that is open with O_DIRECT, which becomes longer ahead of what is written to it.
    pub fn open_direct(&self, path: &Path, caches: CacheSizes) -> Arc<Node> {
        let options = FileOptions {
            cache_direct: true,
            ..file_options("file0", path, false)
        };
        let file = pollster::block_on(FileDriver::open(Medium::File, options));
        let file = Node::new("file0", Box::new(file.expect("a file")));
        let node = Self::writable_on(file, |options| options.caches = caches);
        node.expect("an image")
    }

    fn writable_on(
        file: Arc<Node>,
        change: impl FnOnce(&mut Qcow2Options),
    ) -> std::result::Result<Arc<Node>, OpenError> {
        let node = open_on(file, false, |options| {
            options.discard = true;
            options.discards.request = true;
            options.discards.other = true;
            change(options);
        })?;
        let file = |child: &&&block::Child| child.role() != block::BACKING;
        for child in node.driver().children().iter().filter(file) {
            child.set_access(Access {
                held: Permissions::ALL,
                shared: Permissions::ALL,
            });
        }
        Ok(node)
    }

    /// The same over `backing`, with `caches`.
    pub fn open_over(
        &self,
        path: &Path,
        backing: Arc<Node>,
        caches: CacheSizes,
    ) -> std::result::Result<Arc<Node>, OpenError> {
        self.writable(Medium::File, path, |options| {
            options.caches = caches;
            options.backing = Backing::Node(backing);
        })
    }

    /// Node `data0`, for an external data file, which is opened for reading and writing.
    pub fn data_file(&self, path: &Path) -> Arc<Node> {
        named_file("data0", Medium::File, path, false).expect("a file")
    }

    /// What is behind an image: all but the lowest over the one before.
    pub fn chain(&self, layers: &[Layer]) -> Arc<Node> {
        let mut below: Option<Arc<Node>> = None;
        for layer in layers {
            let node = match layer {
                Layer::Raw(path) => open_file(Medium::File, path, true).expect("a file"),
                Layer::Qcow2(path) => {
                    let below = below.take().map_or(Backing::None, Backing::Node);
                    let change = |options: &mut Qcow2Options| options.backing = below;
                    open(Medium::File, path, true, change).expect("an image")
                }
            };
            below = Some(node);
        }
        below.expect("at least one")
    }

    /// All at once; how they have ended, in order.
    pub fn run(&self, node: &Arc<Node>, requests: Vec<Request>) -> Vec<Result<()>> {
        let node = Arc::clone(node);
        let all = move || async move {
            let _attached = Attachment::new(&node);
            let tasks: Vec<_> = requests
                .into_iter()
                .map(|request| {
                    let node = Arc::clone(&node);
                    iothread::spawn_local(async move { request.perform(&node).await })
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

    /// Writes back, and lets the image go.
    pub fn close(&self, node: Arc<Node>) {
        let last = Arc::clone(&node);
        let write_back = move || async move {
            let _attached = Attachment::new(&last);
            last.write_back().await;
        };
        let done = self.thread.handle().run_blocking(write_back);
        done.expect("the iothread runs");
        assert!(
            node.left_unwritten().is_none(),
            "{:?}",
            node.left_unwritten()
        );
        drop(node);
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

fn file_options(name: &str, path: &Path, read_only: bool) -> FileOptions {
    FileOptions {
        node_name: name.into(),
        path: Some(path.to_owned()),
        filename: path.display().to_string(),
        read_only,
        discard: Discard::Unmap,
        ..FileOptions::default()
    }
}

fn open_file(
    medium: Medium,
    path: &Path,
    read_only: bool,
) -> std::result::Result<Arc<Node>, OpenError> {
    named_file("file0", medium, path, read_only)
}

fn named_file(
    name: &str,
    medium: Medium,
    path: &Path,
    read_only: bool,
) -> std::result::Result<Arc<Node>, OpenError> {
    let options = file_options(name, path, read_only);
    let file = pollster::block_on(FileDriver::open(medium, options))?;
    Ok(Node::new(name, Box::new(file)))
}

fn open(
    medium: Medium,
    path: &Path,
    read_only: bool,
    change: impl FnOnce(&mut Qcow2Options),
) -> std::result::Result<Arc<Node>, OpenError> {
    open_on(open_file(medium, path, read_only)?, read_only, change)
}

fn open_on(
    file: Arc<Node>,
    read_only: bool,
    change: impl FnOnce(&mut Qcow2Options),
) -> std::result::Result<Arc<Node>, OpenError> {
    let mut options = Qcow2Options {
        info: NodeInfo {
            read_only,
            ..NodeInfo::default()
        },
        ..Qcow2Options::new("disk0", file)
    };
    change(&mut options);
    let driver = pollster::block_on(Qcow2::open(options))?;
    Ok(Node::new("disk0", Box::new(driver)))
}

/// What an image lies over.
pub enum Layer {
    Raw(PathBuf),
    Qcow2(PathBuf),
}

impl Layer {
    pub fn path(&self) -> &Path {
        match self {
            Self::Raw(path) | Self::Qcow2(path) => path,
        }
    }

    /// QEMU's name of its format.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Raw(_) => "raw",
            Self::Qcow2(_) => "qcow2",
        }
    }
}

/// What is done to a disk.
#[derive(Clone, Debug)]
pub enum Request {
    Write { at: u64, data: Vec<u8> },
    Zeroes { range: Range<u64>, unmap: bool },
    Discard { range: Range<u64> },
    Flush,
}

impl Request {
    async fn perform(self, node: &Node) -> Result<()> {
        let bytes = |range: &Range<u64>| range.end - range.start;
        match self {
            Self::Write { at, mut data } => {
                let mut memory = Joined::new();
                let third = data.len() / 3;
                let (first, second) = data.split_at_mut(third);
                memory.push_own(first);
                memory.push_own(second);
                node.submit(Io::write(at, memory.buffers())).await
            }
            Self::Zeroes { range, unmap } => {
                node.submit(Io::write_zeroes(range.start, bytes(&range), unmap))
                    .await
            }
            Self::Discard { range } => node.submit(Io::discard(range.start, bytes(&range))).await,
            Self::Flush => node.submit(Io::flush()).await,
        }
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
