//! What a node says of itself: what it asks of requests, and how it is opened. Plain data.

use std::sync::Arc;

use iothread::Engine;

use crate::driver::format_info::FormatInfo;

/// What a node asks of the requests that are sent to it, in bytes. All alignments, and a physical block
/// that is known, are powers of two; alignments are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offset and length of reads and writes must be multiples of it, or the driver bounces.
    pub request_alignment: u32,
    /// Buffers should be aligned to it, or the driver bounces.
    pub memory_alignment: u32,
    /// Granularity that discard works best with.
    pub discard_alignment: u32,
    /// Where byte 0 of the node is in the storage that asks for these alignments: they count from that one's
    /// byte 0.
    pub origin: u64,
    /// What the storage writes without reading first; 0: not known. As the following: advice for
    /// guests.
    pub physical_block: u32,
    /// The smallest request that the storage likes; 0: not known.
    pub minimum_io: u32,
    /// The size of request that the storage likes best; 0: not known.
    pub optimal_io: u32,
    /// Where the first physical block begins.
    pub alignment_offset: u32,
    /// Whether a discard can give space back (it is accepted and ignored otherwise).
    pub discard: bool,
    /// Whether write-zeroes with `unmap` gives space back too (it only zeroes otherwise).
    pub unmap_zeroes: bool,
    /// What a parent's write behind the end makes the node longer by reads as zeroes where nobody has ever written: a file,
    /// not a device that has been extended.
    pub grows_zeroed: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_alignment: 1,
            memory_alignment: 1,
            discard_alignment: 512,
            origin: 0,
            physical_block: 0,
            minimum_io: 0,
            optimal_io: 0,
            alignment_offset: 0,
            discard: true,
            unmap_zeroes: true,
            grows_zeroed: false,
        }
    }
}

/// Whether zeroes are looked for in what is written to a node (`detect-zeroes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// No.
    #[default]
    Off,
    /// Yes: they are written as zeroes.
    On,
    /// Yes, and their space may be given back.
    Unmap,
}

/// How a node is opened, as `query-block` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// The file name, or what QEMU shows in its place (`null-co://`, a JSON pseudo file name).
    pub filename: String,
    /// What is at offset 0 here is at this offset, in bytes, of its only child. None: it has no child, or a
    /// layout of its own.
    pub child_offset: Option<u64>,
    /// All of its only child shows here, and nothing else (QEMU's word: a filter).
    pub filter: bool,
    /// It is a file or a device of the host.
    pub host_file: bool,
    /// In pieces of how many bytes the file system allocates it, if somebody has told it so.
    pub extent_size_hint: Option<u32>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// `cache.direct`.
    pub cache_direct: bool,
    /// `cache.no-flush`.
    pub cache_no_flush: bool,
    /// Whether zeroes are looked for in what is written.
    pub detect_zeroes: DetectZeroes,
    /// Something the user should know, e.g. that a stop policy cannot hold what this node loses.
    pub warning: Option<String>,
    /// What does the I/O of a node that has storage of its own, below the kernel.
    pub engine: Option<NodeEngine>,
    /// What the image says of itself, of a node with a format of its own.
    pub format: Option<Arc<FormatInfo>>,
}

impl NodeInfo {
    /// Of the node below a filter: what the filter shows of it.
    #[must_use]
    pub fn filtered(self) -> Self {
        Self {
            child_offset: Some(0),
            filter: true,
            detect_zeroes: DetectZeroes::default(),
            // These are the child's to give.
            host_file: false,
            extent_size_hint: None,
            warning: None,
            engine: None,
            format: None,
            ..self
        }
    }
}

/// What makes the system calls of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEngine {
    /// Which engine.
    pub engine: Engine,
    /// It was asked for by name: an iothread without it may not serve the node.
    pub required: bool,
    /// Why it is not the default, for the log.
    pub note: Option<String>,
}
