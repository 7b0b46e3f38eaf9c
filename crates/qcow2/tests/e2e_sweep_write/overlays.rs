//! Snapshots in the sequence: whenever an image has been closed, an overlay comes in above it, and it goes on there. What is below
//! is never written again, whatever fails above, and wherever the power is cut.
//!
//! All images lie on the storage under test, each in a part of it that is flushed by itself.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use block::{Access, Io, Node, NodeInfo, OwnedBuffer, Permissions};
use pollster::block_on;
use standfast_qcow2::create::{CreateOptions, make_alone};
use standfast_qcow2::{Backing, Discards, Qcow2, Qcow2Options};
use sweep::sector::index;
use sweep::{Finding, Format, Hands, Value, Window, allow_all, campaign_of};
use tempfile::TempDir;

use crate::format::Kind;
use crate::{SECONDS, SIZE};

/// Bytes of an image, but for the last one, which grows.
const BYTES: u64 = 256 << 10;
/// As many images as there can be.
const IMAGES: u64 = 3;
const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes that are read to find one.
const SECTOR: usize = 512;

/// See the [module](self).
struct Overlays {
    kind: Kind,
    cluster_bytes: u64,
    /// Where the redo logs are, of images that outlive a daemon.
    redo: Option<TempDir>,
    /// The uppermost image has been closed in order.
    is_closed: AtomicBool,
    /// What was below when it got an overlay, from the bottom.
    bases: Mutex<Vec<Vec<u8>>>,
    taken: AtomicU64,
}

impl fmt::Debug for Overlays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

fn words(error: impl fmt::Display) -> String {
    error.to_string()
}

fn part(file: &Arc<Node>, number: u64) -> Arc<Node> {
    let start = number * BYTES;
    let end = (number + 1 < IMAGES).then_some(start + BYTES);
    Window::node("part", file, Some(start)..end)
}

fn read(node: &Arc<Node>, bytes: usize) -> Result<Vec<u8>, String> {
    let mut buffer = OwnedBuffer::new(bytes).map_err(words)?;
    block_on(node.submit(Io::read(0, buffer.lend()))).map_err(words)?;
    Ok(buffer.to_vec())
}

/// How many images there are.
fn count(file: &Arc<Node>) -> Result<u64, String> {
    for number in 0..IMAGES {
        let part = part(file, number);
        let is_there = part.driver().length() >= SECTOR as u64;
        if !is_there || !read(&part, SECTOR)?.starts_with(MAGIC) {
            return Ok(number);
        }
    }
    Ok(IMAGES)
}

impl Overlays {
    fn new(options: &'static str, cluster: u64) -> Self {
        Self {
            kind: Kind::new(options, cluster).longest(Some(200)),
            cluster_bytes: cluster * SECTOR as u64,
            redo: None,
            is_closed: AtomicBool::new(false),
            bases: Mutex::default(),
            taken: AtomicU64::new(0),
        }
    }

    fn with_redo(self) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("standfast-redo-")
            .tempdir_in("/dev/shm");
        let redo = Some(dir.unwrap());
        Self { redo, ..self }
    }

    /// The uppermost of `count` images, with the others behind it.
    fn chain(
        &self,
        file: &Arc<Node>,
        count: u64,
        redo_dir: Option<&Path>,
    ) -> Result<Arc<Node>, String> {
        let mut top = None;
        for number in 0..count {
            let is_top = number + 1 == count;
            let opened = block_on(Qcow2::open(Qcow2Options {
                backing: top.map_or(Backing::None, Backing::Node),
                redo_dir: redo_dir.filter(|_| is_top).map(Into::into),
                discard: true,
                discards: Discards {
                    request: true,
                    snapshot: true,
                    other: true,
                },
                info: NodeInfo {
                    read_only: !is_top,
                    ..NodeInfo::default()
                },
                ..Qcow2Options::new("image", part(file, number))
            }));
            top = Some(Node::new("image", Box::new(opened.map_err(words)?)));
        }
        top.ok_or_else(|| "there is no image".to_owned())
    }

    /// An overlay comes in above the uppermost of `count` images, which is durable then.
    fn snapshot(&self, file: &Arc<Node>, count: u64) -> Result<(), String> {
        let base = part(file, count - 1);
        block_on(base.submit(Io::flush())).map_err(words)?;
        let length = self.chain(file, count, None)?.driver().length();
        // qemu-img looks at an image of them alone, and opens what that names.
        let options = CreateOptions {
            cluster_bytes: self.cluster_bytes,
            ..CreateOptions::overlay(length, b"null-co://", "raw")
        };
        make_alone(&part(file, count), None, &options, Arc::default()).map_err(words)?;
        let bytes = read(&base, index(base.driver().length()))?;
        let mut bases = self.bases.lock().unwrap();
        bases.truncate(index(count - 1));
        bases.push(bytes);
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Format for Overlays {
    fn name(&self) -> String {
        format!("{}, snapshots", self.kind.name())
    }

    fn create(&self, sectors: u64) -> Vec<u8> {
        let mut image = self.kind.create(sectors);
        image.resize(index((IMAGES - 1) * BYTES), 0);
        image
    }

    fn open(&self, file: Arc<Node>) -> Result<Arc<Node>, String> {
        self.chain(&file, count(&file)?, None)
    }

    fn serve(&self, file: Arc<Node>) -> Result<Arc<Node>, String> {
        let mut images = count(&file)?;
        if images < IMAGES && self.is_closed.swap(false, Ordering::Relaxed) {
            // Whoever fails tries again.
            self.snapshot(&file, images)
                .inspect_err(|_| self.is_closed.store(true, Ordering::Relaxed))?;
            images += 1;
        }
        let Some(dir) = &self.redo else {
            return self.chain(&file, images, None);
        };
        let node = self.chain(&file, images, Some(dir.path()))?;
        allow_all(&node);
        let all = Access {
            held: Permissions::ALL,
            shared: Permissions::ALL,
        };
        node.activate(all).map_err(words)?;
        Ok(node)
    }

    fn outlives_kill(&self) -> bool {
        self.redo.is_some()
    }

    fn booted(&self) {
        self.is_closed.store(false, Ordering::Relaxed);
        let left = self
            .redo
            .iter()
            .flat_map(|dir| fs::read_dir(dir.path()).unwrap());
        left.for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());
    }

    fn close(&self, node: &Node) -> Result<(), String> {
        let own = node.driver().capabilities().own_io;
        let is_whole = own.is_none_or(|own| own.unwritten().is_none());
        self.is_closed.store(is_whole, Ordering::Relaxed);
        Ok(())
    }

    fn check(&self, disk: &[u8]) -> Vec<Finding> {
        let parts: Vec<_> = disk.chunks(index(BYTES)).collect();
        let images: Vec<_> = parts
            .iter()
            .take_while(|part| part.starts_with(MAGIC))
            .collect();
        let bases = self.bases.lock().unwrap();
        let mut findings = Vec::new();
        for (number, image) in images.iter().enumerate() {
            findings.extend(self.kind.check(image));
            let is_below = number + 1 < images.len();
            if is_below && bases.get(number).is_some_and(|base| base != *image) {
                let what = format!("image {number} has changed although it is below another one");
                findings.push(Finding::corruption(what));
            }
        }
        if images.is_empty() {
            findings.push(Finding::corruption("there is no image"));
        }
        findings
    }

    fn sectors(&self) -> u64 {
        self.kind.sectors()
    }

    fn cluster(&self) -> u64 {
        self.kind.cluster()
    }

    fn resizes_to(&self) -> Option<u64> {
        self.kind.resizes_to()
    }

    fn content(&self, sectors: u64) -> Vec<Value> {
        self.kind.content(sectors)
    }
}

fn swept(overlays: &Overlays, seeds: u64) {
    let totals = campaign_of(overlays, &mut Hands::here(), SIZE, seeds, SECONDS);
    let totals = totals.unwrap_or_else(|found| panic!("{found}"));
    let taken = overlays.taken.load(Ordering::Relaxed);
    println!("{}: {totals:?}, {taken} snapshots", overlays.name());
    assert!(totals.cuts > 20 && totals.faults > 10, "{totals:?}");
    assert!(taken > 10, "{taken}");
}

#[test]
fn snapshots_in_between() {
    swept(&Overlays::new("cluster_size=512", 1), 3);
    swept(&Overlays::new("cluster_size=4k", 8), 3);
}

/// The log of what is not flushed is another one above, and none below.
#[test]
fn snapshots_of_images_with_logs() {
    swept(&Overlays::new("cluster_size=512", 1).with_redo(), 3);
    swept(&Overlays::new("cluster_size=4k", 8).with_redo(), 2);
}
