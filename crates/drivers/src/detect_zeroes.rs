//! `detect-zeroes`: a write whose memory is all zeroes becomes a write-zeroes, which takes no space where the
//! storage can do that. It is put around the driver of a node that asks for it, and costs nothing elsewhere.
//!
//! # Memory that changes meanwhile
//!
//! A guest may write to the memory of a request that is under way. Nothing is copied to be safe from that: each
//! byte is looked at once, and if all were zero when that was done, zeroes are what is written; the memory
//! is not looked at again. So each byte on the disk was in the memory at some moment between the beginning of
//! the request and its end, and more is promised to nobody who writes to memory that he has given away: the
//! kernel, too, takes bytes one by one. The other way round a write that had something else in it is sent as it
//! is, whatever its memory becomes. When a request is done again after it was held it is looked at again: what
//! counts is what was in memory then.

use std::ops::Range;

use block::{
    Access, BoxFuture, Capabilities, Child, DetectZeroes, Driver, Extent, Io, IoFuture, Limits,
    NodeInfo, Operation, Origin, Result,
};

/// A driver that looks for zeroes in what is written. See the [module](self).
#[derive(Debug)]
pub struct DetectingZeroes {
    driver: Box<dyn Driver>,
    unmap: bool,
}

impl DetectingZeroes {
    /// `driver`, with as much of that as `mode` says.
    pub fn around(driver: Box<dyn Driver>, mode: DetectZeroes) -> Box<dyn Driver> {
        match mode {
            DetectZeroes::Off => driver,
            DetectZeroes::On | DetectZeroes::Unmap => Box::new(Self {
                driver,
                unmap: mode == DetectZeroes::Unmap,
            }),
        }
    }
}

impl Driver for DetectingZeroes {
    fn name(&self) -> &'static str {
        self.driver.name()
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            detect_zeroes: match self.unmap {
                false => DetectZeroes::On,
                true => DetectZeroes::Unmap,
            },
            ..self.driver.info()
        }
    }

    fn actual_size(&self) -> Option<u64> {
        self.driver.actual_size()
    }

    fn length(&self) -> u64 {
        self.driver.length()
    }

    fn limits(&self) -> Limits {
        self.driver.limits()
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        // No memory is no zeroes, either.
        let has_all = io.bytes > 0 && io.buffers.len() as u64 == io.bytes;
        if io.op == Operation::Write && has_all && io.buffers.is_zero() {
            let zeroes = Io::write_zeroes(io.offset, io.bytes, self.unmap);
            return self.driver.submit(zeroes.on_behalf_of(&io));
        }
        self.driver.submit(io)
    }

    fn children(&self) -> Vec<&Child> {
        self.driver.children()
    }

    fn child_access(&self, child: &Child, above: Access) -> Access {
        self.driver.child_access(child, above)
    }

    fn block_status(&self, range: Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
        self.driver.block_status(range)
    }

    fn origin(&self, range: Range<u64>) -> Option<Origin> {
        self.driver.origin(range)
    }

    /// What a parent writes beyond the end is written as it is: there is no space to be saved by looking at it.
    fn capabilities(&self) -> Capabilities<'_> {
        self.driver.capabilities()
    }
}
