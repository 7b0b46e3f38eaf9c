//! A parent that makes its child as long as it takes, as a format does.

use std::path::Path;
use std::sync::Arc;

use block::{Access, Child, Driver, Io, IoFuture, Limits, Node, NodeInfo, Permissions};
use standfast_drivers::{FileDriver, FileOptions};

use super::{node, pattern};

/// Its length is its own, and its file becomes as long as it takes.
#[derive(Debug)]
struct Format(Child);

impl Driver for Format {
    fn name(&self) -> &'static str {
        "format"
    }

    fn info(&self) -> NodeInfo {
        self.0.info()
    }

    fn length(&self) -> u64 {
        1 << 50
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.0.submit(io)
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.0]
    }
}

/// What a parent has that may resize, or not.
fn access(resize: bool) -> Access {
    let held = Permissions::CONSISTENT_READ.and(Permissions::WRITE);
    Access {
        held: match resize {
            true => held.and(Permissions::RESIZE),
            false => held,
        },
        shared: Permissions::ALL,
    }
}

/// A parent that may resize, or not.
pub fn above(file: &Arc<Node>, resize: bool) -> Arc<Node> {
    let child = Child::of(&"disk0".into(), "file", Arc::clone(file));
    child.set_access(access(resize));
    node(Format(child))
}

/// A filter that may resize what is below it, or not.
pub fn filter(name: &str, driver: impl Driver + 'static, resize: bool) -> Arc<Node> {
    let filter = Node::new(name, Box::new(driver));
    for child in filter.driver().children() {
        child.set_access(access(resize));
    }
    filter
}

pub fn options(path: &Path, direct: bool) -> FileOptions {
    FileOptions {
        node_name: "file0".into(),
        filename: path.to_str().expect("ASCII").to_owned(),
        cache_direct: direct,
        ..FileOptions::default()
    }
}

pub fn file(path: &Path, direct: bool) -> Arc<Node> {
    let driver = FileDriver::open_file(options(path, direct)).expect("opens");
    Node::new("file0", Box::new(driver))
}

pub fn data(seed: u64, bytes: u64) -> Vec<u8> {
    pattern(seed, usize::try_from(bytes).expect("small"))
}
