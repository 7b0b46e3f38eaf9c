//! The driver `qcow2`: a disk in an image that grows as it is written.
//!
//! [`Qcow2::open`] says what is refused, and what helps. Nothing is remembered of the image but its header, its L1 table, the
//! refcount table, a bounded part of the other tables, and what is not on disk yet, which is bounded, too. All of it is read
//! anew when the node comes into use, or another node takes the place of its file: until then others may have written.
//!
//! Reads and writes of what is allocated take no lock ([`epoch`](self)). What changes a table does so in memory, after
//! the data it points to have been written; [`rounds`](self) bring the tables to disk in the order that ARCHITECTURE.md gives
//! ("What must hold on disk at every instant").
//!
//! Everything an image says is checked before it is used. What cannot be is EIO for the request that meets it,
//! and names the table; all else of the image can be read.

mod alloc;
mod base;
mod bitmaps;
mod cache;
mod cleaning;
mod corrupt;
mod counted;
mod data_file;
mod decompress;
mod entry;
mod epoch;
pub(crate) mod errand;
mod info;
mod map;
mod named;
mod names_of;
mod new_table;
mod open;
mod options;
mod overlap;
mod prepare;
mod raw_data;
mod read;
mod redo;
mod refcounts;
mod repair;
mod resize;
mod rewrite;
mod rounds;
mod sector;
mod slices;
mod snapshots;
mod state;
mod status;
mod switch;
mod tables;
mod write;
mod writer;
mod zero;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use block::driver::park;
use block::{
    Access, Activate, BlockError, BoxFuture, Capabilities, Child, Driver, Extent, Identify, Image,
    Io, IoFuture, Limits, NodeInfo, OneBeside, Operation, Origin, OwnIo, Permissions, Reopen,
    Resize, Result, Unwritten, rules,
};
use drivers::OpenError;

use self::base::Base;
use self::entry::Clear;
pub use self::named::{BackingName, DataName, Names};
pub use self::names_of::names_of;
pub use self::options::{Backing, CacheSizes, Discards, Qcow2Options};
pub use self::overlap::{Metadata, OverlapCheck};
pub use self::redo::{
    Change as RedoChange, Head as RedoHead, Record as RedoRecord, Ring as RedoRing,
    Which as RedoTable,
};
use self::state::State;

/// See the [module](self).
#[derive(Debug)]
pub struct Qcow2 {
    base: Arc<Base>,
    state: ArcSwap<State>,
    /// That of the state, for whoever asks before each request.
    length: AtomicU64,
    questions: OneBeside,
}

impl Qcow2 {
    /// Opens the image in `options.file`, which may take as long as the storage likes. Dropped before it has
    /// ended, it goes on beside, and nothing is left of it in the end.
    ///
    /// # Errors
    /// Something that is no qcow2 image, or none that could be read: it breaks a rule of the format, or needs what is
    /// not here (a backing file or a data file of which nobody has said anything, encryption, feature bits that nobody knows). One that is to be
    /// written, and is corrupt, or has a table of snapshots or bitmaps that cannot be read.
    pub async fn open(mut options: Qcow2Options) -> std::result::Result<Self, OpenError> {
        let may_fall_back = options.auto_read_only && !options.info.read_only;
        let data_file = options.data_file.as_ref();
        let below = std::iter::once(&options.file).chain(data_file);
        if may_fall_back && below.into_iter().any(|node| node.read_only()) {
            options.info.read_only = true;
        }
        let opened = Self::load(options.clone()).await;
        match opened {
            // One that is corrupt is refused, as in QEMU: nobody is to find out by its disk that it is read-only.
            Err(error)
                if may_fall_back && !options.info.read_only && error.errno != libc::EACCES =>
            {
                options.info.read_only = true;
                let fallen = Self::load(options).await;
                // What is wrong with it however it is opened is told.
                fallen.map_err(|_| error)
            }
            opened => opened,
        }
    }

    async fn load(options: Qcow2Options) -> std::result::Result<Self, OpenError> {
        let base = Arc::new(Base::new(options));
        let errand = Arc::clone(&base);
        let nodes = base.nodes();
        let loaded = errand::run(nodes, move || async move { open::load(&errand).await }).await;
        let loaded = loaded.map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            OpenError::new(errno, format!("Could not read the image: {error}"))
        });
        let loaded = loaded??;
        open::warn(&base, &loaded);
        Ok(Self {
            length: AtomicU64::new(loaded.length),
            state: ArcSwap::from_pointee(loaded),
            base,
            questions: OneBeside::default(),
        })
    }

    /// The image is as `state` says now. Whoever sees a length finds the tables for it.
    fn set(&self, state: Arc<State>) {
        let length = state.length;
        self.state.store(state);
        self.length.store(length, Ordering::Release);
    }

    /// Does what takes requests to the files, and waits for it.
    fn run<R: Send + 'static, F: Future<Output = Result<R>> + 'static>(
        &self,
        work: impl FnOnce(Arc<Base>, Arc<State>) -> F + Send + 'static,
    ) -> Result<R> {
        let (base, state) = (Arc::clone(&self.base), self.state.load_full());
        errand::wait(self.base.nodes(), move || work(base, state))?
    }

    /// What is behind the image, and where its data are, is what it has said when that was opened.
    fn check_names(&self, loaded: &State) -> Result<()> {
        let base = &self.base;
        let (backing, data) = (base.named_backing.as_ref(), base.named_data.as_ref());
        let header = &loaded.header;
        let is_same = backing.is_none_or(|named| BackingName::of(header).as_ref() == Some(named));
        let other = match is_same {
            false => "backing file",
            true if data.is_some_and(|named| DataName::of(header).as_ref() != Some(named)) => {
                "data file"
            }
            true => return Ok(()),
        };
        let text = format!(
            "node '{}': the image names another {other} than when it was opened: take the node out and add it again",
            base.name
        );
        Err(BlockError::new(libc::ESTALE, text))
    }

    /// What is there now.
    fn look(&self) -> Result<State> {
        let errand = Arc::clone(&self.base);
        let nodes = self.base.nodes();
        let loaded = errand::wait(nodes, move || async move { open::load(&errand).await })?;
        loaded.map_err(|error| BlockError::new(error.errno, error.desc))
    }

    /// Nothing can be said of a cluster but that what is behind it shows.
    fn keeps_what_is_behind(&self) -> bool {
        self.base.backing.is_some() && self.state.load().rules.version < 3
    }

    /// The data file is the disk, whatever is in the tables.
    fn is_data_raw(&self) -> bool {
        self.base.data_file.is_some() && self.state.load().raw_data
    }

    fn clear<'a>(&'a self, io: Io<'a>, clear: Clear, discard: bool) -> IoFuture<'a> {
        let state = self.state.load_full();
        IoFuture::new(async move {
            Box::pin(park::never(zero::submit(
                &self.base, &state, io, clear, discard,
            )))
            .await
        })
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
        let nodes = self.base.nodes().into_iter();
        nodes.map(|node| node.driver().actual_size()).sum()
    }

    fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn limits(&self) -> Limits {
        let cluster = self.state.load().header.geometry.cluster_size();
        Limits {
            // 2 MiB at most.
            discard_alignment: u32::try_from(cluster).unwrap_or(512),
            discard: self.base.discard,
            unmap_zeroes: self.base.discard,
            ..Limits::default()
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        match io.op {
            Operation::Read => read::submit(&self.base, &self.state, io),
            // What the image says is durable already.
            Operation::Flush if !self.state.load().writer.has_to_flush(&self.base) => {
                self.base.data().submit(io)
            }
            Operation::Flush => {
                let state = self.state.load_full();
                IoFuture::new(async move {
                    let flush = rounds::flush(&self.base, &state, io.losses_accepted);
                    Box::pin(park::never(flush)).await
                })
            }
            Operation::Discard if !self.base.info.read_only && self.keeps_what_is_behind() => {
                IoFuture::ready(Ok(()))
            }
            _ if self.base.info.read_only => {
                let error = BlockError::new(libc::EACCES, "the node is read-only");
                IoFuture::ready(Err(error.at(&self.base.name, io.offset, io.bytes)))
            }
            Operation::Write => write::submit(&self.base, &self.state, io),
            Operation::WriteZeroes { .. } | Operation::Discard if self.is_data_raw() => {
                let state = self.state.load_full();
                IoFuture::new(async move {
                    let cleared = raw_data::clear(&self.base, &state, io);
                    Box::pin(park::never(cleared)).await
                })
            }
            Operation::WriteZeroes { unmap } => {
                let may_free = self.base.discard && !self.base.discard_no_unref;
                match unmap && may_free && !self.keeps_what_is_behind() {
                    true => self.clear(io, Clear::Free, false),
                    false => self.clear(io, Clear::Keep, false),
                }
            }
            Operation::Discard if !self.base.discard => IoFuture::ready(Ok(())),
            Operation::Discard => match self.base.discard_no_unref {
                true => self.clear(io, Clear::Keep, true),
                false => self.clear(io, Clear::Free, true),
            },
        }
    }

    fn children(&self) -> Vec<&Child> {
        let (data_file, backing) = (self.base.data_file.as_ref(), self.base.backing.as_ref());
        let file = std::iter::once(&self.base.file);
        file.chain(data_file).chain(backing).collect()
    }

    /// Nobody may write to the file (or to what is behind the image) or change its length while it is read as an image, whatever the users of the
    /// disk would let others do.
    fn child_access(&self, child: &Child, above: Access) -> Access {
        if above == Access::NONE {
            return above;
        }
        let is_it = |other: &Child| other.edge() == child.edge();
        if self.base.backing.as_ref().is_some_and(is_it) {
            return rules::backing(above);
        }
        if self.base.data_file.as_ref().is_some_and(is_it) {
            return rules::data(above);
        }
        let others = Permissions::WRITE.and(Permissions::RESIZE);
        Access {
            // Tables are written whether the disk is or not.
            held: match self.base.info.read_only {
                true => Permissions::CONSISTENT_READ,
                false => Permissions::CONSISTENT_READ.and(others),
            },
            shared: Permissions::ALL.without(others),
        }
    }

    fn block_status(&self, range: Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
        let state = self.state.load_full();
        Box::pin(status::of(&self.base, state, &self.questions, range))
    }

    fn origin(&self, range: Range<u64>) -> Option<Origin> {
        status::origin(&self.base, &self.state, range)
    }

    fn capabilities(&self) -> Capabilities<'_> {
        let is_written = !self.base.info.read_only;
        Capabilities {
            resize: is_written.then_some(self),
            own_io: is_written.then_some(self),
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

impl Reopen for Qcow2 {
    /// What has been acknowledged is in tables in memory.
    fn hand_over(&self) -> Result<()> {
        if self.unwritten().is_none() {
            return Ok(());
        }
        self.run(|base, state| async move { write_back(&base, &state).await })
    }
}

/// All that is in memory, where nothing is under way: nothing has to be remembered beside the image then.
async fn write_back(base: &Base, state: &State) -> Result<()> {
    rounds::write_back(base, state).await?;
    redo::close(base, state).await
}

impl OwnIo for Qcow2 {
    fn write_back(&self) -> IoFuture<'_> {
        let state = self.state.load_full();
        IoFuture::new(async move { Box::pin(park::never(write_back(&self.base, &state))).await })
    }

    fn unwritten(&self) -> Option<Unwritten> {
        let state = self.state.load();
        let tables = state.writer.tables();
        if !state.writer.is_unclean() {
            let is_tagged = redo::is_tagged(&tables);
            return is_tagged.then(|| Unwritten {
                bytes: 0,
                what: "the mark of a log that is not needed any more".to_owned(),
            });
        }
        Some(match tables.is_clean() {
            false => Unwritten {
                bytes: tables.unwritten_bytes(),
                what: "tables of the image".to_owned(),
            },
            // Nobody must take for free what may be discarded yet.
            true => Unwritten {
                bytes: 0,
                what: "discards of what the image does not use any more".to_owned(),
            },
        })
    }
}

impl Resize for Qcow2 {
    fn resized_length(&self, length: u64) -> Result<u64> {
        resize::check(&self.state.load(), length)?;
        data_file::check_length(&self.base, length)?;
        Ok(length)
    }

    fn resize(&self, length: u64) -> Result<()> {
        let resized = self.resized(length);
        // Nobody else may be there who writes back.
        if redo::is_tagged(&self.state.load().writer.tables())
            && let Err(error) =
                self.run(|base, state| async move { redo::close(&base, &state).await })
        {
            let name = &self.base.name;
            tracing::warn!("node '{name}': after the change of its length: {error}");
        }
        resized
    }
}

impl Qcow2 {
    fn resized(&self, length: u64) -> Result<()> {
        let before = self.length();
        // Two steps: what is behind the image is hidden in between, by entries that have their place then.
        let longer = self
            .run(move |base, state| async move { resize::longer_l1(&base, &state, length).await });
        self.set(Arc::new(longer?));
        let stale = data_file::lengthen(&self.base, length)?;
        let resized = self.run(move |base, state| async move {
            resize::resize(&base, &state, length, stale).await
        });
        self.set(Arc::new(resized?));
        if length < before {
            data_file::shorten(&self.base, length);
        }
        Ok(())
    }
}

impl Activate for Qcow2 {
    /// Others may have written until now, unless something of ours is not on disk: then nobody has. From now on nobody else
    /// does, if this node is to.
    fn activate(&self, above: Access) -> Result<()> {
        let former = self.state.load_full();
        if let Some(unwritten) = self.unwritten().filter(|_| former.writer.is_unclean()) {
            let name = &self.base.name;
            if former.image == self.base.file.node().image() {
                return Ok(());
            }
            let text = format!(
                "node '{name}': {} of the former file are not on disk ({} bytes)",
                unwritten.what, unwritten.bytes
            );
            return Err(BlockError::new(libc::EBUSY, text));
        }
        let access = self.child_access(&self.base.file, above);
        let mut loaded = self.look()?;
        self.check_names(&loaded)?;
        let writes = access.held.contains(Permissions::WRITE);
        let is_whole = !loaded.header.features.is_dirty();
        if !is_whole && writes {
            repair::repair_dirty(&self.base)?;
            loaded = self.look()?;
        }
        let loaded = Arc::new(loaded);
        redo::detach(&former, &loaded);
        if writes {
            redo::attach(&self.base, &loaded, is_whole)?;
        } else if is_whole {
            redo::tell_of_record(&self.base, &loaded, "it is only read");
        }
        self.set(loaded);
        Ok(())
    }
}
