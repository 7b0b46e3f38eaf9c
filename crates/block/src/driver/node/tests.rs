use super::*;
use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Waker};

use crate::words::permissions::Permissions;

/// Counts what is sent to it; its futures borrow from it to their end.
#[derive(Debug)]
struct Leaf {
    requests: AtomicUsize,
    at_once: bool,
    gone: Arc<AtomicUsize>,
}

impl Leaf {
    fn node(name: &str, at_once: bool, gone: &Arc<AtomicUsize>) -> Arc<Node> {
        let gone = Arc::clone(gone);
        let requests = AtomicUsize::new(0);
        Node::new(
            name,
            Box::new(Self {
                requests,
                at_once,
                gone,
            }),
        )
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        let ended = *self.requests.get_mut();
        self.gone.fetch_add(1 + 100 * ended, Ordering::Relaxed);
    }
}

struct Ends<'a>(&'a Leaf);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }
}

impl Driver for Leaf {
    fn name(&self) -> &'static str {
        "leaf"
    }
    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }
    fn length(&self) -> u64 {
        512
    }
    fn submit<'a>(&'a self, _: Io<'a>) -> IoFuture<'a> {
        let ends = Ends(self);
        if self.at_once {
            return IoFuture::ready(Ok(()));
        }
        let mut polled = false;
        IoFuture::new(async move {
            let _ends = ends;
            std::future::poll_fn(|_| match mem::replace(&mut polled, true) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
            Ok(())
        })
    }
}

#[derive(Debug)]
struct Filter(Child);

impl Driver for Filter {
    fn name(&self) -> &'static str {
        "filter"
    }
    fn info(&self) -> NodeInfo {
        self.0.info()
    }
    fn length(&self) -> u64 {
        self.0.length()
    }
    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.0.submit(io)
    }
    fn filtered(&self) -> Option<&Child> {
        Some(&self.0)
    }
}

fn filter(name: &str, below: &Arc<Node>) -> Arc<Node> {
    let child = Child::of(&name.into(), "file", Arc::clone(below));
    Node::new(name, Box::new(Filter(child)))
}

const READ: Io<'static> = Io {
    op: Operation::Read,
    offset: 0,
    bytes: 512,
    buffers: crate::Buffers::EMPTY,
    fua: false,
    losses_accepted: 0,
};

/// What is under way when another node takes the place below has the old one to its end: the
/// futures of a chain of filters that pass on what they get borrow from each of its nodes.
#[test]
fn a_request_keeps_the_nodes_it_was_sent_to() {
    for depth in 0..5 {
        for run_to_end in [false, true] {
            let gone = Arc::new(AtomicUsize::new(0));
            let mut top = Leaf::node("old", false, &gone);
            for level in 0..depth {
                top = filter(&format!("f{level}"), &top);
            }
            let root = Child::new(User::Export("vda".into()), "root", top);
            let mut future = Box::pin(root.submit(READ));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(future.as_mut().poll(&mut cx).is_pending());

            let new = Leaf::node("new", true, &gone);
            drop(root.set_node(Arc::clone(&new)));
            assert_eq!(gone.load(Ordering::Relaxed), 0, "it is still under way");
            let mut after = pin!(root.submit(READ));
            assert!(after.as_mut().poll(&mut cx).is_ready(), "at the new one");
            assert_eq!(gone.load(Ordering::Relaxed), 0);
            if run_to_end {
                assert!(future.as_mut().poll(&mut cx).is_ready());
            }
            drop(future);
            assert_eq!(
                gone.load(Ordering::Relaxed),
                101,
                "it ended before its node"
            );
            drop(root.set_node(Leaf::node("newest", true, &gone)));
            assert_eq!(
                Arc::strong_count(&new),
                1,
                "what was answered at once keeps nobody"
            );
        }
    }
}

#[test]
fn a_node_knows_who_uses_it() {
    let gone = Arc::default();
    let (one, other) = (
        Leaf::node("one", true, &gone),
        Leaf::node("other", true, &gone),
    );
    let top = filter("top", &one);
    let root = Child::new(User::Export("vda".into()), "root", Arc::clone(&one));
    let names = |node: &Node| {
        let users = node.users();
        let names = users
            .iter()
            .map(|user| format!("{} ({})", user.user, user.role));
        names.collect::<Vec<_>>()
    };
    assert_eq!(
        names(&one),
        ["node 'top' (file)", "block export 'vda' (root)"]
    );
    let access = Access {
        held: Permissions::WRITE,
        shared: Permissions::NONE,
    };
    root.set_access(access);
    assert_eq!(root.access(), access);
    let before = root.set_node(Arc::clone(&other));
    assert!(Arc::ptr_eq(&before, &one));
    assert_eq!(names(&one), ["node 'top' (file)"]);
    assert_eq!(names(&other), ["block export 'vda' (root)"]);
    assert_eq!(root.access(), access, "as before");
    root.end();
    drop(root.set_node(Arc::clone(&one)));
    assert_eq!(names(&one), ["node 'top' (file)"], "it had ended");
    drop((top, root));
    assert!(names(&one).is_empty() && names(&other).is_empty());
}
