//! `throttle`: a filter that limits how much is done in a second, by the budget of its group
//! ([`ThrottleGroup`]), which it may share with other nodes on other iothreads.
//!
//! A request that has to wait has not begun: it is parked ([`block::driver::park`]). So nothing waits for a budget
//! but the request itself: no drain, no stop of a ring, no removal; and what is held has taken nothing. What
//! was allowed is passed on, and counts, however it ends; if it is done again that counts anew, as it asks the
//! storage anew. Flushes are not limited, nor is a discard that the node ignores. The rules of the budget are in
//! `bucket`, those of the line in `line`, of who minds the time in `minders`, and how they meet in `group`.

mod bucket;
mod group;
mod limits;
mod line;
mod minders;

use std::sync::Arc;

use block::driver::park;
use block::{
    Capabilities, Child, Driver, Grow, Io, IoFuture, Limits, Node, NodeInfo, Operation, Reopen,
    Result,
};

pub use self::group::ThrottleGroup;
pub use self::limits::{Rate, ThrottleLimits, VALUE_MAX};

use self::bucket::Kind;
use self::line::Member;
use crate::pseudo_filename;

/// Options of [`Throttle`].
#[derive(Clone, Debug)]
pub struct ThrottleOptions {
    /// Name of the node, for messages.
    pub node_name: Arc<str>,
    /// The child.
    pub file: Arc<Node>,
    /// Whose budget it is.
    pub group: Arc<ThrottleGroup>,
    /// Whether discards reach the child, and zeroes may unmap.
    pub discard: bool,
    /// How the node is opened, as far as that is not the child's concern.
    pub info: NodeInfo,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Throttle {
    file: Child,
    group: Arc<ThrottleGroup>,
    member: Member,
    discard: bool,
    info: NodeInfo,
}

impl Throttle {
    /// Cannot fail: the group exists.
    pub fn new(options: ThrottleOptions) -> Self {
        Self {
            file: Child::of(&options.node_name, "file", options.file),
            member: options.group.join(),
            group: options.group,
            discard: options.discard,
            info: options.info,
        }
    }

    async fn in_turn(&self, turn: group::Turn<'_>, io: Io<'_>) -> Result<()> {
        park::until(turn).await;
        self.file.submit(io).await
    }
}

impl Driver for Throttle {
    fn name(&self) -> &'static str {
        "throttle"
    }

    fn info(&self) -> NodeInfo {
        let group = ("throttle-group", self.group.name().as_ref().into());
        NodeInfo {
            filename: pseudo_filename::of("throttle", &[group], Some(&self.file)),
            child_offset: Some(0),
            filter: true,
            ..self.info.clone()
        }
    }

    fn filtered(&self) -> Option<&Child> {
        Some(&self.file)
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn limits(&self) -> Limits {
        let child = self.file.limits();
        Limits {
            discard: child.discard && self.discard,
            unmap_zeroes: child.unmap_zeroes && self.discard,
            ..child
        }
    }

    fn submit<'a>(&'a self, mut io: Io<'a>) -> IoFuture<'a> {
        let kind = match io.op {
            Operation::Flush => return self.file.submit(io),
            Operation::Discard if !self.discard => return IoFuture::ready(Ok(())),
            Operation::WriteZeroes { unmap } => {
                io.op = Operation::WriteZeroes {
                    unmap: unmap && self.discard,
                };
                Kind::Write
            }
            Operation::Write | Operation::Discard => Kind::Write,
            Operation::Read => Kind::Read,
        };
        if !self.group.is_limited(kind) {
            return self.file.submit(io);
        }
        match self.group.enter(self.member, kind, io.bytes) {
            None => self.file.submit(io),
            Some(turn) => IoFuture::new(self.in_turn(turn, io)),
        }
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            resize: Some(&self.file),
            reopen: Some(self),
            grow: Some(self),
            ..Capabilities::default()
        }
    }
}

/// What reaches beyond the end is the child's business, and counts like all else.
impl Grow for Throttle {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.submit(io)
    }
}

/// There is nothing of its own that could be lost.
impl Reopen for Throttle {}
