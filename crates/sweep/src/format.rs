//! A format under test.

use std::fmt;
use std::sync::Arc;

use block::Node;

use crate::sector::{Value, index};

/// What a checker says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// It only occupies room that nobody uses.
    pub is_leak: bool,
    /// What and where.
    pub what: String,
}

impl Finding {
    /// The image contradicts itself.
    pub fn corruption(what: impl Into<String>) -> Self {
        Self {
            is_leak: false,
            what: what.into(),
        }
    }

    /// Room that nobody uses.
    pub fn leak(what: impl Into<String>) -> Self {
        Self {
            is_leak: true,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_leak { "leak" } else { "corruption" };
        write!(f, "{kind}: {}", self.what)
    }
}

/// An image format under test. One value stands for the format with some options.
pub trait Format: fmt::Debug {
    /// Its name and options, for reports.
    fn name(&self) -> String;

    /// An image that is `sectors` long: what is on the disk. Empty, unless [`Self::content`] says something else.
    fn create(&self, sectors: u64) -> Vec<u8>;

    /// What the guest finds in the image that was just created.
    fn content(&self, sectors: u64) -> Vec<Value> {
        vec![Value::Zero; index(sectors)]
    }

    /// Nothing is written to it.
    fn read_only(&self) -> bool {
        false
    }

    /// Opens the image on `file` for reading and writing: a node whose driver uses that by an edge. Called where all
    /// operations on the storage end at once.
    ///
    /// # Errors
    /// Why it cannot be opened, in words.
    fn open(&self, file: Arc<Node>) -> Result<Arc<Node>, String>;

    /// Opens it to be written by a daemon that may be killed: what that has acknowledged is there when it is opened so the next time. By default as
    /// [`Self::open`].
    ///
    /// # Errors
    /// Why it cannot be opened, in words.
    fn serve(&self, file: Arc<Node>) -> Result<Arc<Node>, String> {
        self.open(file)
    }

    /// What it has acknowledged outlives a daemon that is killed, flushed or not ([`Self::serve`]). If not, none is.
    fn outlives_kill(&self) -> bool {
        false
    }

    /// The machine has been started anew: what a daemon has left beside the image counts no more.
    fn booted(&self) {}

    /// What is to be done before the last one lets `node` go, where all operations end at once: nothing is in flight,
    /// and what the driver had to write back ([`Node::write_back`]) has been written.
    ///
    /// # Errors
    /// What could not be done, in words.
    fn close(&self, _node: &Node) -> Result<(), String> {
        Ok(())
    }

    /// What is wrong with the image that is on the disk.
    fn check(&self, disk: &[u8]) -> Vec<Finding>;

    /// What somebody else says of an image that is objected to, for the report: another checker, say.
    fn second_opinion(&self, _disk: &[u8]) -> Option<String> {
        None
    }

    /// How long the disk is in a [campaign](mod@crate::campaign), in sectors.
    fn sectors(&self) -> u64 {
        96
    }

    /// Sectors of a cluster, so that sequences meet its borders.
    fn cluster(&self) -> u64 {
        8
    }

    /// How much the length can be changed to at most, in sectors; none: not at all.
    fn resizes_to(&self) -> Option<u64> {
        None
    }

    /// Nothing that the guest can still read is ever discarded below: what has been may become anything.
    fn discards_are_private(&self) -> bool {
        true
    }

    /// A cut may leave leaks.
    fn leaks_after_cut(&self) -> bool {
        true
    }

    /// An image that is stopped, but open, may have leaks (such as what waits to be freed).
    fn leaks_after_stop(&self) -> bool {
        false
    }
}
