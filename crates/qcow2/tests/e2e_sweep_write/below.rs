//! What is below an image under test: a chain that QEMU has made, in memory. It is read, and fails as the storage of the image does;
//! nobody writes to it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Child, Driver, Io, IoFuture, Node, NodeInfo, Operation, OwnedBuffer};
use standfast_qcow2::{Backing, Qcow2, Qcow2Options};
use sweep::sector::{bytes_of, fill, index};
use sweep::{Memory, SECTOR, Value};
use testkit::qcow2_image::run;

/// An image in the chain: its options, and how long its disk is, in sectors.
pub type Layer = (&'static str, u64);

/// How many sectors alike lie beside each other.
const PIECE: u64 = 7;

/// See the [module](self).
pub struct Below {
    /// Length of the raw file in sectors, and the layers.
    shape: (u64, Vec<Layer>),
    top: Arc<Node>,
    content: Vec<Value>,
}

impl fmt::Debug for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shape)
    }
}

impl Below {
    /// Images, from the bottom, over a raw file of so many sectors.
    pub fn new(raw: u64, layers: &[Layer]) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (path, mut content) = base(dir.path(), raw);
        let mut top = in_memory(&path).node("base");
        let mut below = (path, "raw");
        for (number, &(options, sectors)) in (1..).zip(layers) {
            let path = dir.path().join(number.to_string());
            let name = path.to_str().unwrap();
            let length = bytes_of(sectors).to_string();
            let behind = below.0.to_str().unwrap();
            let create = [
                "create", "-qfqcow2", "-o", options, "-b", behind, "-F", below.1, name, &length,
            ];
            run("qemu-img", &create).unwrap();
            content.resize(index(sectors), Value::Zero);
            written(&path, &mut content, number);
            let options = Qcow2Options {
                backing: Backing::Node(top),
                info: NodeInfo {
                    read_only: true,
                    ..NodeInfo::default()
                },
                ..Qcow2Options::new("below", in_memory(&path).node("file"))
            };
            let opened = pollster::block_on(Qcow2::open(options)).unwrap();
            top = Node::new("below", Box::new(opened));
            below = (path, "qcow2");
        }
        Self {
            shape: (raw, layers.to_vec()),
            top,
            content,
        }
    }

    /// What shows through an image over it.
    pub fn value(&self, sector: u64) -> Value {
        let value = self.content.get(index(sector));
        value.copied().unwrap_or(Value::Zero)
    }

    /// A node to put below an image in `file`: each read of it is one of `file`, too, which may fail and takes its time.
    pub fn node(&self, file: Arc<Node>) -> Arc<Node> {
        let below = Child::of(&"through".into(), "file", Arc::clone(&self.top));
        Node::new("through", Box::new(Through { file, below }))
    }
}

/// Whoever writes to it panics.
fn in_memory(path: &Path) -> Memory {
    Memory::new(&std::fs::read(path).unwrap())
        .bounded(0)
        .fixed()
}

fn stamped(sector: u64, number: u32) -> Value {
    let piece = u32::try_from(sector / PIECE).unwrap();
    Value::Stamp(200_000 + 10_000 * number + piece)
}

fn bytes(first: u64, values: &[Value]) -> Vec<u8> {
    let mut all = vec![0; values.len() * SECTOR];
    for ((sector, value), bytes) in (first..).zip(values).zip(all.chunks_mut(SECTOR)) {
        if let Value::Stamp(stamp) = *value {
            fill(bytes, stamp, sector);
        }
    }
    all
}

fn base(dir: &Path, sectors: u64) -> (PathBuf, Vec<Value>) {
    let value = |sector: u64| match sector / PIECE % 4 {
        3 => Value::Zero,
        _ => stamped(sector, 0),
    };
    let content: Vec<_> = (0..sectors).map(value).collect();
    let path = dir.join("base");
    std::fs::write(&path, bytes(0, &content)).unwrap();
    (path, content)
}

/// Of four pieces one is written, and one is zeroed.
fn written(path: &Path, content: &mut [Value], number: u32) {
    let dir = path.parent().unwrap();
    let mut commands = Vec::new();
    for (at, values) in (0..).zip(content.chunks_mut(index(PIECE))) {
        let first = at * PIECE;
        let (offset, length) = (bytes_of(first), values.len() * SECTOR);
        match (at + u64::from(number)) % 4 {
            0 => {
                for (sector, value) in (first..).zip(&mut *values) {
                    *value = stamped(sector, number);
                }
                let piece = dir.join(format!("piece{at}"));
                std::fs::write(&piece, bytes(first, values)).unwrap();
                commands.push(format!("write -q -s {} {offset} {length}", piece.display()));
            }
            1 => {
                values.fill(Value::Zero);
                commands.push(format!("write -q -z {offset} {length}"));
            }
            _ => {}
        }
    }
    let mut arguments = vec!["-fqcow2"];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(path.to_str().unwrap());
    run("qemu-io", &arguments).unwrap();
}

/// Reads what is below, if a read of the file does not fail.
#[derive(Debug)]
struct Through {
    file: Arc<Node>,
    below: Child,
}

impl Driver for Through {
    fn name(&self) -> &'static str {
        "through"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        self.below.length()
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        assert!(io.op == Operation::Read, "{:?} of what is below", io.op);
        IoFuture::new(Box::pin(async move {
            let mut buffer = OwnedBuffer::new(SECTOR)?;
            self.file.submit(Io::read(0, buffer.lend())).await?;
            self.below.submit(io).await
        }))
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.below]
    }
}
