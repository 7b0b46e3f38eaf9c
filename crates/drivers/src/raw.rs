//! `raw`: the format of an image that has none: its bytes are those of the child, or of a window of it.
//!
//! Without `offset` and `size` it is as long as its child, and becomes longer with it. A window begins at
//! `offset`; with `size` it ends there too, and never becomes longer. Nothing that is sent to the node reaches
//! what lies outside of it. Whatever the child answers is passed on as it is: there is no state, and nothing to
//! be done when a request has ended.
//!
//! A window that begins between two sectors of 512 bytes and has no `size` ends with its last whole one, so
//! that no guest writes beyond the image.

use std::ops::Range;
use std::sync::Arc;

use block::{
    Access, Activate, BlockError, BoxFuture, Capabilities, Child, Driver, Extent, Grow, Identify,
    Image, Io, IoFuture, Limits, Node, NodeInfo, Operation, Permissions, Reopen, Resize, Result,
};

use crate::OpenError;
use crate::pseudo_filename;

/// What lengths are multiples of, in bytes.
const SECTOR: u64 = 512;

/// Options of [`Raw`].
#[derive(Clone, Debug)]
pub struct RawOptions {
    /// Name of the node, for messages.
    pub node_name: Arc<str>,
    /// The child.
    pub file: Arc<Node>,
    /// First byte of the child that belongs to the node.
    pub offset: u64,
    /// Length in bytes, a multiple of 512; none: up to the end of the child.
    pub size: Option<u64>,
    /// Whether discards reach the child, and zeroes may unmap.
    pub discard: bool,
    /// How the node is opened, as far as that is not the child's concern.
    pub info: NodeInfo,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Raw {
    file: Child,
    offset: u64,
    size: Option<u64>,
    discard: bool,
    info: NodeInfo,
}

impl Raw {
    /// Opens the node.
    ///
    /// # Errors
    ///
    /// A window that does not lie inside the child, or is no multiple of 512 bytes long.
    pub fn new(options: RawOptions) -> std::result::Result<Self, OpenError> {
        let raw = Self {
            file: Child::of(&options.node_name, "file", options.file),
            offset: options.offset,
            size: options.size,
            discard: options.discard,
            info: options.info,
        };
        let check = raw.check_window();
        check.map_err(|text| OpenError::new(libc::EINVAL, text))?;
        match raw.size {
            Some(size) if size % SECTOR != 0 => Err(OpenError::new(
                libc::EINVAL,
                format!("Specified size is not multiple of {SECTOR}"),
            )),
            _ => Ok(raw),
        }
    }

    fn is_window(&self) -> bool {
        self.offset > 0 || self.size.is_some()
    }

    fn check_window(&self) -> std::result::Result<(), String> {
        let (offset, length) = (self.offset, self.file.length());
        if length < offset {
            return Err(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({length})"
            ));
        }
        match self.size {
            Some(size) if length - offset < size => Err(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual \
                 size of the containing file ({length})"
            )),
            _ => Ok(()),
        }
    }

    /// The request, as the child gets it. None: there is nothing to do.
    fn below<'a>(&self, mut io: Io<'a>) -> Option<Io<'a>> {
        match io.op {
            Operation::Flush => return Some(io),
            Operation::Discard if !self.discard => return None,
            Operation::WriteZeroes { .. } if !self.discard => {
                io.op = Operation::WriteZeroes { unmap: false };
            }
            _ => {}
        }
        // A window and a request each end below 2^63.
        io.offset += self.offset;
        Some(io)
    }

    /// The length of the child if this node is `length` long.
    fn length_below(&self, length: u64) -> Result<u64> {
        if self.size.is_some() {
            let text = "Cannot resize fixed-size raw disks";
            return Err(BlockError::new(libc::ENOTSUP, text));
        }
        let below = length.checked_add(self.offset);
        below
            .filter(|length| i64::try_from(*length).is_ok())
            .ok_or_else(|| {
                BlockError::new(libc::EINVAL, "Disk size too large for the chosen offset")
            })
    }

    fn length_on(&self, below: u64) -> u64 {
        match self.offset {
            0 => below,
            offset => below.saturating_sub(offset) & !(SECTOR - 1),
        }
    }
}

impl Driver for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn info(&self) -> NodeInfo {
        let mut options = Vec::new();
        if self.offset > 0 {
            options.push(("offset", self.offset.into()));
        }
        if let Some(size) = self.size {
            options.push(("size", size.into()));
        }
        NodeInfo {
            filename: match options.is_empty() && pseudo_filename::names_its_parent(&self.file) {
                true => self.file.info().filename,
                false => pseudo_filename::of("raw", &options, Some(&self.file)),
            },
            child_offset: Some(self.offset),
            ..self.info.clone()
        }
    }

    fn actual_size(&self) -> Option<u64> {
        self.file.node().driver().actual_size()
    }

    fn length(&self) -> u64 {
        match self.size {
            Some(size) => size,
            None => self.length_on(self.file.length()),
        }
    }

    fn limits(&self) -> Limits {
        let child = self.file.limits();
        let physical = u64::from(child.physical_block);
        let alignment_offset = match self.offset.checked_rem(physical) {
            None | Some(0) => child.alignment_offset,
            Some(skipped) => {
                let first = (u64::from(child.alignment_offset) + physical - skipped) % physical;
                u32::try_from(first).unwrap_or(0)
            }
        };
        Limits {
            alignment_offset,
            origin: child.origin + self.offset,
            discard: child.discard && self.discard,
            unmap_zeroes: child.unmap_zeroes && self.discard,
            // The length is one in sectors: behind it there may be a part of one.
            grows_zeroed: child.grows_zeroed && self.offset.is_multiple_of(512),
            ..child
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        match self.below(io) {
            Some(io) => self.file.submit(io),
            None => IoFuture::ready(Ok(())),
        }
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.file]
    }

    /// Who has a window counts on the length of the child.
    fn child_access(&self, _child: &Child, above: Access) -> Access {
        match self.is_window() {
            true => Access {
                shared: above.shared.without(Permissions::RESIZE),
                ..above
            },
            false => above,
        }
    }

    fn block_status(&self, range: Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
        let range = range.start + self.offset..range.end + self.offset;
        Box::pin(self.file.block_status(range))
    }

    fn capabilities(&self) -> Capabilities<'_> {
        let grows = self.size.is_none();
        Capabilities {
            resize: Some(self),
            reopen: Some(self),
            grow: grows.then_some(self),
            activate: Some(self),
            identify: (self.offset > 0).then_some(self),
            ..Capabilities::default()
        }
    }
}

/// What reaches beyond the end is the child's business, unless the window ends there.
impl Grow for Raw {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.submit(io)
    }
}

impl Resize for Raw {
    fn resized_length(&self, length: u64) -> Result<u64> {
        let below = self.length_below(length)?;
        Ok(self.length_on(self.file.node().resized_length(below)?))
    }

    fn resize(&self, length: u64) -> Result<()> {
        let below = self.length_below(length)?;
        self.file.node().resize(below)
    }
}

/// What begins elsewhere in the same image is another disk: what was held of one must not be done to the other.
impl Identify for Raw {
    fn image(&self) -> Image {
        self.file.node().image().from_byte(self.offset)
    }
}

/// There is nothing of its own that could be lost.
impl Reopen for Raw {}

impl Activate for Raw {
    /// Another child, or one that others have changed until now, may be too short for the window.
    fn activate(&self, _above: Access) -> Result<()> {
        let check = self.check_window();
        check.map_err(|text| BlockError::new(libc::EINVAL, text))
    }
}
