//! `blkdebug`: a filter that lets operations on its child fail, by a plan.
//!
//! What the plan lets fail never reaches the child, wholly or in part. Everything else is the
//! child's own future: the filter costs one atomic load while its plan is empty.

mod plan;

use std::sync::Arc;

use block::fault::{InjectError, SetState};
use block::{BlockError, Capabilities, Child, Driver, Grow, Io, IoFuture, Limits, Node, NodeInfo};

use crate::OpenError;

use self::plan::Plan;

/// Options of [`Blkdebug`].
#[derive(Clone, Debug)]
pub struct BlkdebugOptions {
    /// Name of the node, for messages.
    pub node_name: Arc<str>,
    /// The child.
    pub image: Arc<Node>,
    /// The `inject-error` rules.
    pub inject_error: Vec<InjectError>,
    /// The `set-state` rules.
    pub set_state: Vec<SetState>,
    /// The request alignment to ask for, in bytes: a power of two below 1 GiB; none, or less than the
    /// child's: the child's.
    pub align: Option<u32>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Blkdebug {
    node_name: Arc<str>,
    image: Child,
    plan: Plan,
    align: u32,
}

const ALIGN_MAX: u32 = 1 << 30;

impl Blkdebug {
    /// Opens the filter.
    ///
    /// # Errors
    ///
    /// An `align` that is no power of two, or out of range.
    pub fn new(options: BlkdebugOptions) -> Result<Self, OpenError> {
        // As for QEMU, 0 is not said.
        let align = options.align.filter(|align| *align > 0).unwrap_or(1);
        if !align.is_power_of_two() || align >= ALIGN_MAX {
            return Err(OpenError::new(
                libc::EINVAL,
                format!("Cannot meet constraints with align {align}"),
            ));
        }
        Ok(Self {
            image: Child::of(&options.node_name, "image", options.image),
            node_name: options.node_name,
            plan: Plan::new(options.inject_error, options.set_state),
            align,
        })
    }
}

impl Driver for Blkdebug {
    fn name(&self) -> &'static str {
        "blkdebug"
    }

    fn info(&self) -> NodeInfo {
        let child = self.image.info();
        NodeInfo {
            filename: format!("blkdebug::{}", child.filename),
            ..child.filtered()
        }
    }

    fn filtered(&self) -> Option<&Child> {
        Some(&self.image)
    }

    /// As with QEMU, which has it for a protocol.
    fn actual_size(&self) -> Option<u64> {
        None
    }

    fn length(&self) -> u64 {
        self.image.length()
    }

    fn limits(&self) -> Limits {
        let child = self.image.limits();
        Limits {
            request_alignment: child.request_alignment.max(self.align),
            ..child
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let Some(fault) = self.plan.decide(io.op, io.offset, io.bytes) else {
            return self.image.submit(io);
        };
        let error = BlockError::new(fault.errno, InjectedError(fault.errno))
            .doing(io.op.name())
            .at(&self.node_name, io.offset, io.bytes);
        if fault.immediately {
            return IoFuture::ready(Err(error));
        }
        IoFuture::new(async move {
            iothread::yield_now().await;
            Err(error)
        })
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            resize: Some(&self.image),
            grow: Some(self),
            fault_plan: Some(&self.plan),
            ..Capabilities::default()
        }
    }
}

/// What reaches beyond the end is the child's business.
impl Grow for Blkdebug {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.submit(io)
    }
}

/// Says that the failure is none of the storage.
#[derive(Debug, thiserror::Error)]
#[error("injected: {}", block::Cause::of_errno(*.0).reason())]
struct InjectedError(i32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NullCo, NullOptions};
    use block::fault::{FaultEvent, IoType};
    use block::{Buffers, ErrorKind, Operation};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn open(inject_error: Vec<InjectError>, align: Option<u32>) -> Result<Arc<Node>, OpenError> {
        let null = Node::new("null0", Box::new(NullCo::new(NullOptions::default())));
        let blkdebug = Blkdebug::new(BlkdebugOptions {
            node_name: "debug0".into(),
            image: null,
            inject_error,
            set_state: Vec::new(),
            align,
        })?;
        Ok(Node::new("debug0", Box::new(blkdebug)))
    }

    fn io(op: Operation) -> Io<'static> {
        Io {
            op,
            offset: 4096,
            bytes: 0,
            buffers: Buffers::EMPTY,
            fua: false,
            losses_accepted: 0,
        }
    }

    /// Polls once or twice; how many polls it took, and the result.
    fn run(node: &Node, op: Operation) -> (usize, block::Result<()>) {
        let mut future = pin!(node.submit(io(op)));
        let mut cx = Context::from_waker(Waker::noop());
        (1..3)
            .find_map(|polls| match future.as_mut().poll(&mut cx) {
                Poll::Ready(result) => Some((polls, result)),
                Poll::Pending => None,
            })
            .expect("ready at the second poll")
    }

    #[test]
    fn fails_what_the_plan_says_now_or_in_a_later_turn() {
        let rule = |iotype, immediately| InjectError {
            event: FaultEvent::None,
            iotype: Some(iotype),
            errno: libc::ENOSPC,
            immediately,
            ..InjectError::default()
        };
        let node = open(
            vec![rule(IoType::Write, false), rule(IoType::Flush, true)],
            None,
        )
        .expect("opens");
        for (op, expected) in [
            (Operation::Write, Some(2)),
            (Operation::Flush, Some(1)),
            (Operation::Read, None),
            (Operation::Discard, None),
        ] {
            let (polls, result) = run(&node, op);
            match expected {
                None => assert!(result.is_ok(), "{op}"),
                Some(expected) => {
                    let error = result.expect_err("injected");
                    assert_eq!(
                        (polls, error.kind()),
                        (expected, ErrorKind::NoSpace),
                        "{op}"
                    );
                    assert!(
                        error.to_string().contains("injected: No space left"),
                        "{error}"
                    );
                }
            }
        }
        let plan = node.fault_plan().expect("it has one");
        plan.clear_all();
        assert!(run(&node, Operation::Write).1.is_ok());
    }

    #[test]
    fn align_is_a_power_of_two_and_shows() {
        for align in [3, 1 << 30, u32::MAX] {
            let error = open(Vec::new(), Some(align)).expect_err("no alignment");
            assert_eq!(
                error.desc,
                format!("Cannot meet constraints with align {align}")
            );
        }
        open(Vec::new(), Some(0)).expect("opens");
        let node = open(Vec::new(), Some(4096)).expect("opens");
        assert_eq!(node.driver().limits().request_alignment, 4096);
        assert_eq!(node.driver().info().filename, "blkdebug::null-co://");
        assert_eq!(node.driver().length(), 1 << 30);
    }
}
