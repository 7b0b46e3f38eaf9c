//! The driver `qcow2`: a disk in an image that grows as it is written.
//!
//! It reads only: an image is opened read-only, or not at all ([`Qcow2::open`] says what else is refused, and
//! what helps). Nothing is remembered of the image but its header, its L1 table and a bounded part of its L2
//! tables ([`cache`](self)), all of which is read anew when the node comes into use, or another node takes the
//! place of its file: until then others may have written.
//!
//! Everything an image says is checked before it is used. What cannot be is EIO for the request that meets it,
//! and names the table; all else of the image can be read.

mod cache;
mod decompress;
mod errand;
mod info;
mod map;
mod open;
mod options;
mod overlap;
mod read;
mod repair;
mod state;
mod status;

use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwap;
use block::{
    Access, Activate, BlockError, BoxFuture, Capabilities, Child, Driver, Extent, Identify, Image,
    Io, IoFuture, Limits, NodeInfo, OneBeside, Operation, Permissions, Reopen, Result,
};
use drivers::OpenError;

pub use self::options::{CacheSizes, Discards, Qcow2Options};
pub use self::overlap::{Metadata, OverlapCheck};
use self::state::{Base, State};

/// See the [module](self).
#[derive(Debug)]
pub struct Qcow2 {
    base: Arc<Base>,
    state: ArcSwap<State>,
    questions: OneBeside,
}

impl Qcow2 {
    /// Opens the image in `options.file`, which may take as long as the storage likes. Dropped before it has
    /// ended, it goes on beside, and nothing is left of it in the end.
    ///
    /// # Errors
    /// Something that is no qcow2 image, or none that could be read: it breaks a rule of the format, or needs what is
    /// not here (a backing file, an external data file, encryption, feature bits that nobody knows). Any that is to be
    /// written.
    pub async fn open(mut options: Qcow2Options) -> std::result::Result<Self, OpenError> {
        let is_for_writing = !options.info.read_only && !options.auto_read_only;
        options.info.read_only = true;
        let base = Arc::new(Base::new(options));
        let errand = Arc::clone(&base);
        let node = base.file.node();
        let loaded = errand::run(node, move || async move { open::load(&errand).await }).await;
        let loaded = loaded.map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            OpenError::new(errno, format!("Could not read the image: {error}"))
        });
        let loaded = loaded??;
        if is_for_writing {
            let text = "Images in qcow2 format can be read, but not written yet: set read-only=on";
            return Err(OpenError::new(libc::ENOTSUP, text));
        }
        Ok(Self {
            state: ArcSwap::from_pointee(loaded),
            base,
            questions: OneBeside::default(),
        })
    }
}

impl Qcow2 {
    /// What is there now.
    fn look(&self) -> Result<State> {
        let errand = Arc::clone(&self.base);
        let node = self.base.file.node();
        let loaded = errand::wait(node, move || async move { open::load(&errand).await })?;
        loaded.map_err(|error| BlockError::new(error.errno, error.desc))
    }
}

impl Driver for Qcow2 {
    fn name(&self) -> &'static str {
        info::NAME
    }

    fn info(&self) -> NodeInfo {
        info::of(&self.base, &self.state.load())
    }

    fn actual_size(&self) -> Option<u64> {
        self.base.file.node().driver().actual_size()
    }

    fn length(&self) -> u64 {
        self.state.load().length
    }

    fn limits(&self) -> Limits {
        let cluster = self.state.load().header.geometry.cluster_size();
        Limits {
            // 2 MiB at most.
            discard_alignment: u32::try_from(cluster).unwrap_or(512),
            discard: false,
            unmap_zeroes: false,
            ..Limits::default()
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        match io.op {
            Operation::Read => read::submit(&self.base, &self.state, io),
            Operation::Flush => self.base.file.submit(io),
            Operation::Write | Operation::WriteZeroes { .. } | Operation::Discard => {
                let error = BlockError::new(libc::EACCES, "the node is read-only");
                IoFuture::ready(Err(error.at(&self.base.name, io.offset, io.bytes)))
            }
        }
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.base.file]
    }

    /// Nobody may write to the file or change its length while it is read as an image, whatever the users of the
    /// disk would let others do.
    fn child_access(&self, _child: &Child, above: Access) -> Access {
        if above == Access::NONE {
            return above;
        }
        let others = Permissions::WRITE.and(Permissions::RESIZE);
        Access {
            held: Permissions::CONSISTENT_READ,
            shared: Permissions::ALL.without(others),
        }
    }

    fn block_status(&self, range: Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
        let state = self.state.load_full();
        Box::pin(status::of(&self.base, state, &self.questions, range))
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            reopen: Some(self),
            activate: Some(self),
            identify: Some(self),
            corruption: Some(&self.base.corruption),
            ..Capabilities::default()
        }
    }
}

/// The file read as something else is another disk: what was held of one must not be done to the other.
impl Identify for Qcow2 {
    fn image(&self) -> Image {
        self.base.file.node().image().read_as(info::NAME)
    }
}

/// There is nothing of its own that could be lost.
impl Reopen for Qcow2 {
    fn hand_over(&self) -> Result<()> {
        Ok(())
    }
}

impl Activate for Qcow2 {
    /// Others may have written until now. From now on nobody else does, if this node is to.
    fn activate(&self, above: Access) -> Result<()> {
        let access = self.child_access(&self.base.file, above);
        let mut loaded = self.look()?;
        if loaded.header.features.is_dirty() && access.held.contains(Permissions::WRITE) {
            repair::repair_dirty(&self.base)?;
            loaded = self.look()?;
        }
        self.state.store(Arc::new(loaded));
        Ok(())
    }
}
