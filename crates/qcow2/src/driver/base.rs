//! What stays of an opened image, whatever is read of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use block::{
    BlockError, Child, Corruption, CorruptionReport, DATA_FILE, Node, NodeInfo, OwnedBuffer, Result,
};

use super::named::{BackingName, DataName};
use super::options::{Backing, CacheSizes, Discards, Needs, Qcow2Options};
use super::overlap::OverlapCheck;
use crate::format::{GuestOffset, HostOffset};

/// What an image is opened with.
#[derive(Debug)]
pub struct Base {
    /// Name of the node.
    pub name: Arc<str>,
    /// The node with the image.
    pub file: Child,
    /// The external data file.
    pub data_file: Option<Child>,
    /// What the header has named it, if it is that one.
    pub named_data: Option<DataName>,
    /// The node behind it.
    pub backing: Option<Child>,
    /// Nobody has said whether there is one.
    pub backing_unsaid: bool,
    /// What the header has named it, if it is that one.
    pub named_backing: Option<BackingName>,
    /// How much may be remembered.
    pub caches: CacheSizes,
    /// After which time what nobody has looked for is forgotten.
    pub clean_interval: Duration,
    /// What an image must be for the options.
    pub needs: Needs,
    /// What was found of the image that cannot be.
    pub corruption: Corruption,
    /// How often the image's file could not be made durable: what was written before may be lost, whatever succeeds later.
    pub failed_flushes: AtomicU32,
    /// What the guest discards is discarded.
    pub discard: bool,
    /// What is passed on of what is not used any more.
    pub discards: Discards,
    /// What the guest discards keeps its cluster.
    pub discard_no_unref: bool,
    /// Which tables may not lie where the guest writes.
    pub overlap: OverlapCheck,
    /// Where it is recorded what is acknowledged and not flushed.
    pub redo_dir: Option<Arc<Path>>,
    /// How the node is opened.
    pub info: NodeInfo,
}

impl Base {
    pub fn new(options: Qcow2Options) -> Self {
        Self {
            needs: options.needs(),
            clean_interval: options.cache_clean_interval,
            corruption: Corruption::default(),
            failed_flushes: AtomicU32::default(),
            file: Child::of(&options.node_name, "file", options.file),
            data_file: options
                .data_file
                .map(|node| Child::of(&options.node_name, DATA_FILE, node)),
            named_data: options.named_data,
            backing_unsaid: matches!(options.backing, Backing::Unsaid),
            backing: match options.backing {
                Backing::Unsaid | Backing::None => None,
                Backing::Node(node) => Some(Child::of(&options.node_name, "backing", node)),
            },
            named_backing: options.named_backing,
            name: options.node_name,
            caches: options.caches,
            discard: options.discard,
            discards: options.discards,
            discard_no_unref: options.discard_no_unref,
            overlap: options.overlap,
            redo_dir: options.redo_dir,
            info: options.info,
        }
    }

    /// Where the guest's data are.
    #[inline]
    pub fn data(&self) -> &Child {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    /// The nodes that requests go to, but those behind the image.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        let data = self.data_file.as_ref().map(Child::node);
        std::iter::once(self.file.node()).chain(data).collect()
    }

    /// Reads `bytes` at `offset` of the file, to look at them. What lies behind its end is zeroes.
    pub async fn read(&self, offset: HostOffset, bytes: usize) -> Result<OwnedBuffer> {
        let mut buffer = OwnedBuffer::new(bytes)?;
        let io = block::Io::read(offset.0, buffer.lend());
        self.file.submit(io).await?;
        Ok(buffer)
    }

    /// How much of `bytes` from `guest` on is there behind the image; behind that there are zeroes.
    #[inline]
    pub fn behind(&self, guest: u64, bytes: u64) -> Option<(&Child, u64)> {
        let backing = self.backing.as_ref()?;
        let there = backing.length().saturating_sub(guest).min(bytes);
        (there > 0).then_some((backing, there))
    }

    /// EIO, because the image says something that cannot be: `what` names the table.
    #[cold]
    pub fn corrupt(&self, at: GuestOffset, bytes: u64, what: String) -> BlockError {
        self.corruption.report(CorruptionReport {
            msg: what.clone(),
            offset: None,
            bytes: None,
            fatal: false,
        });
        let text = format!("the image is corrupt: {what}");
        BlockError::new(libc::EIO, text).at(&self.name, at.0, bytes)
    }

    /// Why nothing is written to an image that is corrupt.
    #[cold]
    pub fn broken(&self, offset: u64, what: &str) -> BlockError {
        let text = format!("the image is corrupt, and is not written any more: {what}");
        let error = BlockError::new(libc::EIO, text);
        error.at(&self.name, offset, 0).beyond_repair()
    }
}
