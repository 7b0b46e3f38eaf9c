//! `blkdebug`: a filter that lets operations on its child fail, by a [fault plan](block::fault).
//!
//! What the plan lets fail never reaches the child, wholly or in part. Everything else is the
//! child's own future: the filter costs one atomic load while its plan is empty.

use std::sync::Arc;

use block::fault::{FaultPlan, InjectError, SetState};
use block::{BlockError, Driver, Io, IoFuture, Limits, Node, NodeInfo};

use crate::OpenError;

/// Options of [`Blkdebug`].
#[derive(Clone, Debug)]
pub struct BlkdebugOptions {
    /// The child.
    pub image: Arc<Node>,
    /// The `inject-error` rules.
    pub inject_error: Vec<InjectError>,
    /// The `set-state` rules.
    pub set_state: Vec<SetState>,
    /// The request alignment to ask for, in bytes: a power of two from 512 (1 with a child that asks
    /// for none) and below 1 GiB; none: the child's.
    pub align: Option<u32>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Blkdebug {
    image: Arc<Node>,
    plan: FaultPlan,
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
        let align = options.align.unwrap_or(1);
        if !align.is_power_of_two() || align >= ALIGN_MAX {
            return Err(OpenError::new(
                libc::EINVAL,
                format!("Cannot meet constraints with align {align}"),
            ));
        }
        Ok(Self {
            image: options.image,
            plan: FaultPlan::new(options.inject_error, options.set_state),
            align,
        })
    }
}

impl Driver for Blkdebug {
    fn name(&self) -> &'static str {
        "blkdebug"
    }

    fn info(&self) -> NodeInfo {
        let child = self.image.driver().info();
        NodeInfo {
            filename: format!("blkdebug::{}", child.filename),
            ..child
        }
    }

    fn length(&self) -> u64 {
        self.image.driver().length()
    }

    fn limits(&self) -> Limits {
        let child = self.image.driver().limits();
        Limits {
            request_alignment: child.request_alignment.max(self.align),
            ..child
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let Some(fault) = self.plan.decide(io.op, io.offset, io.bytes) else {
            return self.image.submit(io);
        };
        // The node that failed, for whoever reads the event, is this one; its name is not known
        // here, and whoever holds the node adds it.
        let error = BlockError::new(fault.errno, InjectedError(fault.errno));
        if fault.immediately {
            return IoFuture::ready(Err(error));
        }
        IoFuture::new(async move {
            iothread::yield_now().await;
            Err(error)
        })
    }

    fn children(&self) -> Vec<(&'static str, Arc<Node>)> {
        vec![("image", Arc::clone(&self.image))]
    }

    fn resize(&self, length: u64) -> block::Result<()> {
        self.image.driver().resize(length)
    }

    fn data_extents(&self) -> block::Result<Vec<std::ops::Range<u64>>> {
        self.image.driver().data_extents()
    }

    fn fault_plan(&self) -> Option<&FaultPlan> {
        Some(&self.plan)
    }
}

/// Says that the failure is none of the storage.
#[derive(Debug, thiserror::Error)]
#[error("injected: {}", block::Cause::of_errno(*.0).reason())]
struct InjectedError(i32);
