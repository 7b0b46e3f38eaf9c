//! What nodes that can be locked, and nodes that remember something, are told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};

use parking_lot::Mutex;
use pollster::block_on;

use super::*;
use crate::control::task::control;
use crate::driver::capabilities::{
    Activate, Capabilities, ImageId, ImageLocks, LockError, OwnIo, Reopen, Resize, Unwritten,
};
use crate::driver::future::IoFuture;
use crate::driver::io::Io;
use crate::driver::limits::NodeInfo;
use crate::driver::node::{Child, Driver};
use crate::registry::{Lease, Registry};
use crate::words::error::{BlockError, Result as BlockResult};
use crate::words::permissions::Permissions;

const NOBODY: Access = Access::NONE;
const READS: Access = Access {
    held: Permissions::CONSISTENT_READ,
    shared: Permissions::ALL,
};
const WRITES: Access = Access {
    held: Permissions::CONSISTENT_READ.and(Permissions::WRITE),
    shared: Permissions::ALL,
};
const RESIZES: Access = Access {
    held: Permissions::RESIZE,
    shared: Permissions::ALL,
};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Lock(&'static str, Access),
    Activate(&'static str),
    Resize(u64),
}

/// What all nodes of a test were told, and what is to become of it.
#[derive(Debug, Default)]
struct World {
    told: Mutex<Vec<Told>>,
    /// What is locked of the image.
    locked: Mutex<Access>,
    /// What is above a node that has looked again.
    above: Mutex<Access>,
    refuses: AtomicBool,
    cannot_tell: AtomicBool,
    cannot_write: AtomicBool,
    length: AtomicU64,
}

impl World {
    fn told(&self) -> Vec<Told> {
        std::mem::take(&mut *self.told.lock())
    }

    fn locked(&self) -> Access {
        *self.locked.lock()
    }
}

/// A file, or what stands on it.
#[derive(Debug)]
struct Fake {
    name: &'static str,
    world: Arc<World>,
    below: Option<Child>,
}

impl Driver for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        self.world.length.load(Ordering::Relaxed)
    }

    fn submit<'a>(&'a self, _: Io<'a>) -> IoFuture<'a> {
        IoFuture::ready(Ok(()))
    }

    fn children(&self) -> Vec<&Child> {
        self.below.iter().collect()
    }

    fn capabilities(&self) -> Capabilities<'_> {
        match self.below {
            None => Capabilities {
                image_locks: Some(self),
                resize: Some(self),
                reopen: Some(self),
                ..Capabilities::default()
            },
            Some(_) => Capabilities {
                activate: Some(self),
                own_io: Some(self),
                ..Capabilities::default()
            },
        }
    }
}

impl ImageLocks for Fake {
    fn lock(&self, access: Access) -> Result<(), LockError> {
        self.world.told.lock().push(Told::Lock(self.name, access));
        if self.world.refuses.load(Ordering::Relaxed) {
            return Err(LockError {
                errno: libc::EAGAIN,
                desc: "somebody has it".to_owned(),
                hint: None,
            });
        }
        let mut locked = self.world.locked.lock();
        *locked = locked.and(access);
        Ok(())
    }

    fn settle(&self, access: Access) {
        *self.world.locked.lock() = access;
    }

    fn lock_beside(&self, access: Access) -> Result<(), LockError> {
        self.lock(access)
    }

    fn needs(&self, access: Access) -> Access {
        access
    }

    fn image(&self) -> ImageId {
        ImageId {
            device: 0,
            inode: 0,
        }
    }
}

impl Activate for Fake {
    fn activate(&self, above: Access) -> BlockResult<()> {
        self.world.told.lock().push(Told::Activate(self.name));
        *self.world.above.lock() = above;
        match self.world.cannot_tell.load(Ordering::Relaxed) {
            true => Err(BlockError::new(libc::EIO, "nobody knows")),
            false => Ok(()),
        }
    }
}

impl Resize for Fake {
    fn resized_length(&self, length: u64) -> BlockResult<u64> {
        Ok(length)
    }

    fn resize(&self, length: u64) -> BlockResult<()> {
        let mut told = self.world.told.lock();
        assert_eq!(self.world.locked().held, Permissions::RESIZE);
        told.push(Told::Resize(length));
        self.world.length.store(length, Ordering::Relaxed);
        Ok(())
    }
}

impl OwnIo for Fake {
    /// Hangs, or fails.
    fn write_back(&self) -> IoFuture<'_> {
        if self.world.cannot_write.load(Ordering::Relaxed) {
            return IoFuture::ready(Err(BlockError::from_errno(libc::ENOSPC)));
        }
        IoFuture::new(std::future::pending())
    }

    fn unwritten(&self) -> Option<Unwritten> {
        Some(Unwritten {
            bytes: 1,
            what: "something".to_owned(),
        })
    }
}

impl Reopen for Fake {
    fn hand_over(&self) -> BlockResult<()> {
        Ok(())
    }
}

/// `top` on `middle` on `file`.
fn house() -> (Arc<Registry>, Arc<World>) {
    let (control, _task) = control();
    let (registry, _quit) = Registry::new(control);
    let world = Arc::new(World::default());
    let mut below: Option<Arc<Node>> = None;
    for name in ["file", "middle", "top"] {
        let fake = Fake {
            name,
            world: Arc::clone(&world),
            below: below.map(|below| Child::of(&name.into(), "file", below)),
        };
        let node = Node::new(name, Box::new(fake));
        block_on(registry.add_node(&node)).expect("nobody is in the way");
        below = Some(node);
    }
    assert_eq!(world.told(), [], "nobody uses anything");
    (registry, world)
}

fn begin(registry: &Registry, node: &str, access: Access) -> Result<Child, RegistryError> {
    let lease = block_on(registry.begin_use("vda", node, access));
    lease.map(|Lease { root, .. }| root)
}

fn end(registry: &Registry, root: Child) {
    let node = root.node();
    drop(root);
    block_on(registry.end_use(&node));
}

#[test]
fn what_comes_into_use_is_locked_and_looks_again_from_below() {
    let (registry, world) = house();
    let root = begin(&registry, "top", READS).expect("nobody is in the way");
    let first = [
        Told::Lock("file", READS),
        Told::Activate("middle"),
        Told::Activate("top"),
    ];
    assert_eq!(world.told(), first);
    assert_eq!(*world.above.lock(), READS);
    // Another one that wants more: what is in use knows what is there.
    let other = begin(&registry, "middle", WRITES).expect("nobody is in the way");
    assert_eq!(world.told(), [Told::Lock("file", WRITES)]);
    end(&registry, other);
    assert_eq!(world.locked(), READS);
    end(&registry, root);
    assert_eq!(world.locked(), NOBODY);
    // A node on its own, whose use has ended before anybody asks.
    let root = begin(&registry, "file", WRITES).expect("nobody is in the way");
    assert_eq!(world.told(), [Told::Lock("file", WRITES)]);
    assert_eq!(world.locked(), WRITES);
    end(&registry, root);
    assert_eq!(world.locked(), NOBODY);
    assert_eq!(world.told(), []);
}

#[test]
fn a_refusal_leaves_nothing() {
    let (registry, world) = house();
    world.refuses.store(true, Ordering::Relaxed);
    let refused = begin(&registry, "top", WRITES).expect_err("somebody has it");
    assert!(refused.is_locked(), "{refused}");
    assert_eq!(world.told(), [Told::Lock("file", WRITES)]);
    world.refuses.store(false, Ordering::Relaxed);
    world.cannot_tell.store(true, Ordering::Relaxed);
    for access in [READS, WRITES] {
        let refused = begin(&registry, "top", access).expect_err("it cannot tell");
        assert!(!refused.is_locked());
        assert!(refused.to_string().contains("nobody knows"), "{refused}");
        let told = [Told::Lock("file", access), Told::Activate("middle")];
        assert_eq!(world.told(), told);
        assert_eq!(world.locked(), NOBODY);
        for node in registry.nodes() {
            assert_eq!(node.access(), NOBODY, "{}", node.name());
        }
    }
    // Of one who is there already, and has it already, nothing is taken.
    world.cannot_tell.store(false, Ordering::Relaxed);
    let root = begin(&registry, "middle", READS).expect("nobody is in the way");
    world.cannot_tell.store(true, Ordering::Relaxed);
    begin(&registry, "top", WRITES).expect_err("it cannot tell");
    assert_eq!(world.locked(), READS);
    end(&registry, root);
}

/// A node that nobody used was resized with no lock, whoever else had its image.
#[test]
fn a_resize_is_a_use() {
    let (registry, world) = house();
    block_on(registry.resize("file", 4096)).expect("nobody is in the way");
    assert_eq!(
        world.told(),
        [Told::Lock("file", RESIZES), Told::Resize(4096)]
    );
    assert_eq!(world.locked(), NOBODY);
    world.refuses.store(true, Ordering::Relaxed);
    let refused = block_on(registry.resize("file", 8192)).expect_err("somebody has it");
    assert!(refused.is_locked(), "{refused}");
    assert_eq!(world.told(), [Told::Lock("file", RESIZES)]);
    assert_eq!(world.length.load(Ordering::Relaxed), 4096);
}

/// What is written back and hangs is given up, and goes on: its image stays locked.
#[test]
fn what_is_still_written_stays_locked() {
    let (registry, world) = house();
    let root = begin(&registry, "top", WRITES).expect("nobody is in the way");
    let middle = registry.node("middle").expect("it is there");
    let mut hangs = Box::pin(middle.write_back());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(hangs.as_mut().poll(&mut cx).is_pending());
    middle.give_write_back_up();
    end(&registry, root);
    assert_eq!(world.locked(), WRITES);
    drop(hangs);
    let root = begin(&registry, "top", READS).expect("nobody is in the way");
    end(&registry, root);
    assert_eq!(world.locked(), NOBODY);
}

/// A write-back that fails is tried again when the node is used again. Another process that had the image in between wrote to it,
/// and what was kept was written over that.
#[test]
fn what_could_not_be_written_stays_locked() {
    let (registry, world) = house();
    let root = begin(&registry, "top", WRITES).expect("nobody is in the way");
    let middle = registry.node("middle").expect("it is there");
    world.cannot_write.store(true, Ordering::Relaxed);
    block_on(middle.write_back());
    assert!(middle.not_on_disk().is_some());
    end(&registry, root);
    assert_eq!(world.locked(), WRITES);
}

/// The threshold went with the new opening before it was known whether that stays: one that failed left the node
/// without.
#[test]
fn a_threshold_goes_with_a_reopening_that_has_come_about() {
    let (registry, world) = house();
    let root = begin(&registry, "top", READS).expect("nobody is in the way");
    let file = || registry.node("file").expect("it is there");
    let armed = || file().write_threshold().get();
    let former = file();
    for fails in [true, false] {
        let fake = Fake {
            name: "file",
            world: Arc::clone(&world),
            below: None,
        };
        let again = Node::new("file", Box::new(fake));
        let reopening = block_on(registry.prepare_reopen(vec![Arc::clone(&again)], || true));
        let reopening = reopening.expect("nobody is in the way");
        // However late.
        registry
            .set_write_threshold("file", 4096)
            .expect("it is there");
        world.cannot_tell.store(fails, Ordering::Relaxed);
        let done = block_on(registry.commit(reopening));
        assert_eq!(done.is_err(), fails);
        assert_eq!(Arc::ptr_eq(&file(), &again), !fails);
        assert_eq!(armed(), 4096, "{fails}");
    }
    assert_eq!(former.write_threshold().get(), 0);
    end(&registry, root);
}
