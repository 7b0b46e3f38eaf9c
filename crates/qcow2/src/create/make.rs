//! Making an image on nodes, in an order that leaves no half of one, wherever it ends.
//!
//! 1. The file is as long as it has to be: a device that is too small has lost nothing.
//! 2. What is there is no image any more: its first sector is zeroes, durably. In a new file there is nothing.
//! 3. What is preallocated has its room; tables, and all of the header but its first sector; durable.
//! 4. The first sector, by one write; durable.
//!
//! So until the last write there is what was there before, or nothing that anybody takes for an image, and with it all
//! of the new one. What fails gives the file its former length back.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{
    Access, Attachment, BlockError, Child, Io, LockError, Node, OwnedBuffer, Permissions, Result,
    User, beside,
};
use drivers::file::Preallocation;

use super::layout::Layout;
use super::options::CreateOptions;
use crate::driver::errand::Desk;

/// Bytes that are written at once.
const PIECE: usize = 1 << 20;
/// Bytes of zeroes that are asked for at once: between two pieces it can be given up.
const ZEROES_PIECE: u64 = 1 << 30;
/// The part of the header that makes an image of what is behind it: one sector.
const FIRST: usize = 512;

/// The nodes on which an image is made. Their users let nobody else write there meanwhile.
#[derive(Debug)]
pub struct Target {
    /// Where the image will be.
    pub file: Child,
    /// The external data file, if it is to have one.
    pub data_file: Option<Child>,
}

impl Target {
    /// What an image's maker has to have of each node.
    pub const ACCESS: Access = Access {
        held: Permissions::CONSISTENT_READ
            .and(Permissions::WRITE)
            .and(Permissions::RESIZE),
        shared: Permissions::ALL.without(Permissions::WRITE.and(Permissions::RESIZE)),
    };
}

/// Makes the image. What is there is overwritten, and whoever knows the node looks at it anew after that. It may take
/// as long as the storage likes; `cancelled`: nobody wants it any more. Dropped, it goes on beside to its end.
///
/// # Errors
/// There can be no such image; the storage's, which name the node. There is no image then.
pub async fn create(
    target: Target,
    options: CreateOptions,
    cancelled: Arc<AtomicBool>,
) -> Result<()> {
    let made = beside(move || make(target, &options, cancelled)).await;
    made.unwrap_or_else(|error| Err(error.into()))
}

/// The same on a node that is in no graph, and that nobody else uses: it is locked meanwhile.
///
/// # Errors
/// As [`create`]; another process has it.
pub async fn create_alone(
    file: Arc<Node>,
    options: CreateOptions,
    cancelled: Arc<AtomicBool>,
) -> Result<()> {
    let made = beside(move || make_alone(&file, None, &options, cancelled)).await;
    made.unwrap_or_else(|error| Err(error.into()))
}

/// [`create_alone`], and whoever calls waits for it. `data_file`: the external data file, which is in no graph either.
///
/// # Errors
/// As [`create_alone`].
pub fn make_alone(
    file: &Arc<Node>,
    data_file: Option<&Arc<Node>>,
    options: &CreateOptions,
    cancelled: Arc<AtomicBool>,
) -> Result<()> {
    let _locked = Locked::new(file)?;
    let _locked_too = data_file.map(Locked::new).transpose()?;
    let child = |role, node: &Arc<Node>| {
        let child = Child::new(User::Unnamed, role, Arc::clone(node));
        child.set_access(Target::ACCESS);
        child
    };
    let target = Target {
        file: child("file", file),
        data_file: data_file.map(|node| child("data-file", node)),
    };
    make(target, options, cancelled)
}

/// Locks on all that is below a node, until it is dropped.
struct Locked(Vec<Arc<Node>>);

impl Locked {
    fn new(node: &Arc<Node>) -> Result<Self> {
        let mut this = Self(Vec::new());
        for node in node.bottom_up() {
            let Some(locks) = node.driver().capabilities().image_locks else {
                continue;
            };
            let taken = locks.lock(Target::ACCESS);
            taken.map_err(|LockError { errno, desc, .. }| BlockError::new(errno, desc))?;
            this.0.push(node);
        }
        Ok(this)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        for node in &self.0 {
            if let Some(locks) = node.driver().capabilities().image_locks {
                locks.settle(Access::NONE);
            }
        }
    }
}

/// An image that is being made.
struct Making {
    target: Target,
    layout: Layout,
    preallocation: Preallocation,
    cancelled: Arc<AtomicBool>,
    /// What was there before is there no more.
    has_begun: AtomicBool,
}

fn make(target: Target, options: &CreateOptions, cancelled: Arc<AtomicBool>) -> Result<()> {
    let layout = Layout::new(options);
    let layout = layout.map_err(|error| BlockError::new(error.errno(), error))?;
    if options.data_file.is_some() != target.data_file.is_some() {
        let text = "an external data file has a node and a name";
        return Err(BlockError::new(libc::EINVAL, text));
    }
    let (file, data_file) = (
        target.file.node(),
        target.data_file.as_ref().map(Child::node),
    );
    for node in [Some(&file), data_file.as_ref()].into_iter().flatten() {
        if node.read_only() {
            let text = "the node is read-only: no image can be made there";
            return Err(BlockError::new(libc::EACCES, text).at(node.name(), 0, 0));
        }
    }
    let desk = Desk::new(
        [Some(&file), data_file.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
    )?;
    let making = Arc::new(Making {
        target,
        layout,
        preallocation: options.preallocation(),
        cancelled,
        has_begun: AtomicBool::new(false),
    });
    let mut grown = Grown::default();
    let made = (|| {
        let before = file.driver().length();
        grown.at_least(&file, making.layout.length())?;
        if let Some(data) = &data_file {
            let (before, end, raw) = (data.driver().length(), options.size, options.data_file_raw);
            match raw {
                true => grown.exactly(data, end)?,
                false => grown.at_least(data, end)?,
            }
            wait(&desk, &making, move |making| async move {
                making.reserve_data(before.min(end), end, raw).await
            })?;
        }
        wait(&desk, &making, move |making| async move {
            making.has_begun.store(true, Ordering::Relaxed);
            making.forget().await?;
            making.write(before).await
        })
    })();
    if made.is_err() {
        // The first sector may have been written: nothing is taken away from under it.
        let forgotten = match making.has_begun.load(Ordering::Relaxed) {
            true => wait(
                &desk,
                &making,
                |making| async move { making.forget().await },
            ),
            false => Ok(()),
        };
        if forgotten.is_ok() {
            grown.undo();
        }
    }
    made
}

fn wait<F: Future<Output = Result<()>> + 'static>(
    desk: &Desk,
    making: &Arc<Making>,
    work: impl FnOnce(Arc<Making>) -> F + Send + 'static,
) -> Result<()> {
    let making = Arc::clone(making);
    desk.wait(move || async move {
        let data = making.target.data_file.as_ref().map(Child::node);
        let _attached = data.as_ref().map(Attachment::new);
        work(making).await
    })?
}

/// Nodes that were made longer, and how long they were.
#[derive(Default)]
struct Grown(Vec<(Arc<Node>, u64)>);

impl Grown {
    fn at_least(&mut self, node: &Arc<Node>, length: u64) -> Result<()> {
        match node.driver().length() < length {
            true => self.exactly(node, length),
            false => Ok(()),
        }
    }

    fn exactly(&mut self, node: &Arc<Node>, length: u64) -> Result<()> {
        let before = node.driver().length();
        if before == length {
            return Ok(());
        }
        let resized = node.resize(length);
        let resized = resized.and_then(|()| match node.driver().length() < length {
            true => Err(BlockError::from_errno(libc::ENOSPC)),
            false => Ok(()),
        });
        resized.map_err(|error| {
            let text = format!("it has {before} bytes, and the image takes {length}: {error}");
            BlockError::new(error.errno(), text)
                .because(error.kind())
                .at(node.name(), 0, 0)
        })?;
        if before < length {
            self.0.push((Arc::clone(node), before));
        }
        Ok(())
    }

    /// What nobody can use takes no room.
    fn undo(self) {
        for (node, before) in self.0 {
            if let Err(error) = node.resize(before) {
                let name = node.name();
                tracing::warn!("node '{name}': what was made of an image takes space: {error}");
            }
        }
    }
}

impl Making {
    fn go_on(&self) -> Result<()> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(BlockError::new(libc::ECANCELED, "Operation canceled")),
            false => Ok(()),
        }
    }

    async fn flush(&self) -> Result<()> {
        self.target.file.submit(Io::flush()).await
    }

    async fn first(&self) -> Result<OwnedBuffer> {
        let mut first = OwnedBuffer::new(FIRST)?;
        let read = Io::read(0, first.lend());
        self.target.file.submit(read).await?;
        Ok(first)
    }

    /// Step 2.
    async fn forget(&self) -> Result<()> {
        if self.first().await?.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let mut zeroes = OwnedBuffer::zeroed(FIRST)?;
        let write = Io::write(0, zeroes.lend());
        self.target.file.submit(write).await?;
        self.flush().await
    }

    /// The data file, which had `before` bytes of its `end`. What is in a raw one is the guest's.
    async fn reserve_data(&self, before: u64, end: u64, raw: bool) -> Result<()> {
        let Some(data) = &self.target.data_file else {
            return Ok(());
        };
        let blank = blank_from(data, before..end).await?;
        if !raw && self.preallocation != Preallocation::Off {
            self.reserve(data, 0..end, blank).await?;
        } else {
            self.reserve(data, before..end, blank.min(end)).await?;
        }
        data.submit(Io::flush()).await
    }

    /// Makes room for `range` of `node`, which is zeroes from `blank` on, and after this all of it.
    async fn reserve(&self, node: &Child, range: Range<u64>, blank: u64) -> Result<()> {
        let (zeroes, unmap) = match self.preallocation {
            Preallocation::Off => return Ok(()),
            Preallocation::Metadata => (range.start..range.end.min(blank), true),
            Preallocation::Falloc => (range, false),
            Preallocation::Full => return self.write_zeroes(node, range).await,
        };
        let mut at = zeroes.start;
        while at < zeroes.end {
            self.go_on()?;
            let bytes = ZEROES_PIECE.min(zeroes.end - at);
            node.submit(Io::write_zeroes(at, bytes, unmap)).await?;
            at += bytes;
        }
        Ok(())
    }

    async fn write_zeroes(&self, node: &Child, range: Range<u64>) -> Result<()> {
        let mut zeroes = OwnedBuffer::zeroed(PIECE)?;
        let zeroes = zeroes.lend();
        let mut at = range.start;
        while at < range.end {
            self.go_on()?;
            let left = usize::try_from(range.end - at).unwrap_or(PIECE);
            let piece = zeroes.slice(0..left.min(PIECE));
            node.submit(Io::write(at, piece)).await?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Steps 3 and 4; the file had `before` bytes.
    async fn write(&self, before: u64) -> Result<()> {
        let file = &self.target.file;
        let length = self.layout.length();
        let blank = blank_from(file, before.min(length)..length).await?;
        self.reserve(file, self.layout.data(), blank).await?;
        self.write_tables().await?;
        let cluster = self.layout.cluster_bytes();
        let mut header = OwnedBuffer::zeroed(cluster.max(FIRST))?;
        for (to, from) in header.iter_mut().zip(self.layout.header()) {
            *to = *from;
        }
        let header = header.lend();
        if cluster > FIRST {
            let rest = header.slice(FIRST..cluster);
            file.submit(Io::write(FIRST as u64, rest)).await?;
        }
        self.flush().await?;
        self.go_on()?;
        let first = header.slice(0..FIRST);
        file.submit(Io::write(0, first)).await?;
        self.flush().await?;
        let mut wanted = [0; FIRST];
        first.copy_to(&mut wanted);
        match self.first().await?[..] == wanted {
            true => Ok(()),
            false => {
                let text = "what was written there is not there: no image can be made";
                Err(BlockError::new(libc::EIO, text).at(&file.name(), 0, 0))
            }
        }
    }

    /// Several clusters at once.
    async fn write_tables(&self) -> Result<()> {
        let cluster = self.layout.cluster_bytes();
        let at_once = (PIECE / cluster).max(1);
        let mut buffer = OwnedBuffer::new(at_once * cluster)?;
        let mut tables = self.layout.tables();
        while !tables.is_empty() {
            self.go_on()?;
            let at = tables.start * cluster as u64;
            let mut bytes = 0;
            for piece in buffer.chunks_mut(cluster) {
                if let Some(table) = tables.next() {
                    self.layout.fill(table, piece);
                    bytes += cluster;
                }
            }
            let left = self.layout.length().saturating_sub(at);
            let bytes = bytes.min(usize::try_from(left).unwrap_or(bytes));
            let piece = buffer.lend().slice(0..bytes);
            self.target.file.submit(Io::write(at, piece)).await?;
        }
        Ok(())
    }
}

/// From where on all of `range` of `node` is zeroes, up to where it ends: behind the last of it that is not. The block with the
/// end of a file that had another length is none.
async fn blank_from(node: &Child, range: Range<u64>) -> Result<u64> {
    let mut blank = range.start;
    let look = node.extents(range.clone(), |at, extent| {
        if !extent.zero {
            blank = at + extent.bytes;
        }
    });
    // It need not know.
    match look.await {
        Ok(()) => Ok(blank.min(range.end)),
        Err(_) => Ok(range.end),
    }
}
