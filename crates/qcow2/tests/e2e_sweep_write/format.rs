//! The driver as a format of the sweep, and what qemu-img says of the images that it leaves.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use block::{Access, Node, NodeInfo, Permissions};
use drivers::{CopyOnRead, CopyOnReadOptions};
use standfast_qcow2::check::{Limits, Problem, check};
use standfast_qcow2::{Backing, CacheSizes, Discards, Image, OverlapCheck, Qcow2, Qcow2Options};
use sweep::sector::{bytes_of, index};
use sweep::{Finding, Format, Value, Window, allow_all};
use tempfile::TempDir;

use crate::below::{Below, Layer};
use crate::files;
use crate::images::{Filled, content, make, own_over};
use crate::kept;
use crate::qemu_check::{self, Verdict};

/// qemu-img looks at one of so many images.
const ASKED_ONE_IN: u64 = 100;

/// qcow2 with some options.
pub struct Kind {
    options: &'static str,
    filled: Filled,
    cluster: u64,
    sectors: u64,
    longest: Option<u64>,
    caches: CacheSizes,
    discards: Discards,
    no_unref: bool,
    below: Option<Below>,
    /// Where the redo log is, of one that outlives a daemon.
    redo: Option<TempDir>,
    copies: bool,
    /// Its data are in another file.
    data_file: bool,
    /// Images, by the length of their disks.
    made: Mutex<BTreeMap<u64, Vec<u8>>>,
    checked: AtomicU64,
    asked: AtomicU64,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Kind {
    /// Options of `qemu-img create`; clusters of so many sectors.
    pub fn new(options: &'static str, cluster: u64) -> Self {
        Self {
            options,
            filled: Filled::Not,
            cluster,
            sectors: 96.max(6 * cluster),
            longest: Some(320.max(40 * cluster)),
            caches: CacheSizes::default(),
            discards: Discards {
                request: true,
                snapshot: true,
                other: true,
            },
            no_unref: false,
            below: None,
            redo: None,
            copies: false,
            data_file: options.contains("data_file"),
            made: Mutex::default(),
            checked: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        }
    }

    /// The data file, if there is one, has the beginning of the storage: as a device, it is as long as the disk can become.
    fn data_bytes(&self) -> u64 {
        match self.data_file {
            true => bytes_of(self.longest.unwrap_or(self.sectors).max(self.sectors)),
            false => 0,
        }
    }

    fn is_raw(&self) -> bool {
        self.options.contains("data_file_raw=on")
    }

    pub fn filled(self, filled: Filled) -> Self {
        Self { filled, ..self }
    }

    /// It can become so long, in sectors; none: its length stays.
    pub fn longest(self, longest: Option<u64>) -> Self {
        Self { longest, ..self }
    }

    /// So few slices of tables in memory that what was read has to be read again.
    pub fn with_tiny_caches(self) -> Self {
        let caches = CacheSizes {
            l2: Some(512),
            l2_entry: Some(512),
            refcounts: Some(512),
            ..CacheSizes::default()
        };
        Self { caches, ..self }
    }

    /// With a log of what is not flushed, for daemons that are killed.
    pub fn with_redo(self) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("standfast-redo-")
            .tempdir_in("/dev/shm");
        let redo = Some(dir.unwrap());
        Self { redo, ..self }
    }

    /// What is discarded keeps its cluster, and nothing is discarded below.
    pub fn without_unref(self) -> Self {
        Self {
            no_unref: true,
            discards: Discards::default(),
            ..self
        }
    }

    /// Writes are compared with tables of snapshots, too, which have to be read for that.
    fn overlap(&self) -> OverlapCheck {
        match self.filled {
            Filled::Snapshots | Filled::SnapshotsOver => OverlapCheck::ALL,
            _ => OverlapCheck::default(),
        }
    }

    /// What is missing of what no write may touch.
    fn lost(&self, disk: &[u8]) -> Option<String> {
        if !self.filled.keeps_something() {
            return None;
        }
        let made = self.made.lock().unwrap();
        let mut lost = Some("of no image".to_owned());
        for created in made.values() {
            // One of them is what it was.
            lost = Some(kept::look(created, disk).err()?);
        }
        lost
    }

    /// Over images, from the bottom, that are over a raw file of `raw` sectors.
    pub fn over(self, raw: u64, layers: &[Layer]) -> Self {
        Self {
            below: Some(Below::new(raw, layers)),
            ..self
        }
    }

    /// What is read from behind is copied.
    pub fn copying(self) -> Self {
        Self {
            copies: true,
            ..self
        }
    }

    fn opened(&self, file: Arc<Node>, redo_dir: Option<Arc<Path>>) -> Result<Arc<Node>, String> {
        let (file, data_file) = match self.data_bytes() {
            0 => (file, None),
            end => {
                let data = Window::node("data", &file, Some(0)..Some(end));
                (Window::node("image", &file, Some(end)..None), Some(data))
            }
        };
        let backing = match &self.below {
            Some(below) => Backing::Node(below.node(Arc::clone(&file))),
            None => Backing::Unsaid,
        };
        let opened = pollster::block_on(Qcow2::open(Qcow2Options {
            backing,
            caches: self.caches,
            redo_dir,
            data_file,
            discard: true,
            discards: self.discards,
            overlap: self.overlap(),
            discard_no_unref: self.no_unref,
            ..Qcow2Options::new("qcow2", file)
        }));
        let opened = opened.map_err(|error| error.to_string())?;
        Ok(Node::new("qcow2", Box::new(opened)))
    }

    /// What is read from behind is copied, if that is wanted.
    fn copied(&self, image: Arc<Node>) -> Result<Arc<Node>, String> {
        if !self.copies {
            return Ok(image);
        }
        allow_all(&image);
        let copy = CopyOnRead::new(CopyOnReadOptions {
            node_name: "copy".into(),
            file: image,
            bottom: None,
            info: NodeInfo::default(),
        });
        let copy = copy.map_err(|error| error.to_string())?;
        Ok(Node::new("copy", Box::new(copy)))
    }

    fn behind(&self, sector: u64) -> Value {
        let below = self.below.as_ref();
        below.map_or(Value::Zero, |below| below.value(sector))
    }

    /// How often qemu-img was asked.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// What our checker says: of corruptions, or of leaks, or nothing; and what qemu-img has to say then.
fn ours(disk: &[u8]) -> (Verdict, Verdict, String) {
    let image = match Image::open(&disk) {
        Ok(image) => image,
        Err(error) => return (Verdict::Corrupt, Verdict::Corrupt, error.to_string()),
    };
    let report = check(&image, &Limits::default());
    let texts: Vec<_> = report
        .findings
        .iter()
        .map(|finding| format!("{finding:?}"))
        .collect();
    let verdict = match (report.corruptions + report.errors, report.leaks) {
        (0, 0) => Verdict::Clean,
        (0, _) => Verdict::Leaks,
        _ => Verdict::Corrupt,
    };
    // It does not look at what is counted behind the end of the file.
    let cluster = image.header.geometry.cluster_size();
    let is_seen = report.findings.iter().any(|finding| match finding.problem {
        Problem::Leaked {
            cluster: number, ..
        } => number * cluster < disk.len() as u64,
        _ => true,
    });
    let other = match verdict {
        Verdict::Leaks if !is_seen => Verdict::Clean,
        _ => verdict,
    };
    (verdict, other, texts.join("; "))
}

impl Format for Kind {
    fn name(&self) -> String {
        let Self {
            options,
            filled,
            caches,
            ..
        } = self;
        let tiny = if caches.l2.is_some() {
            ", tiny caches"
        } else {
            ""
        };
        let kept = if self.no_unref {
            ", discard-no-unref"
        } else {
            ""
        };
        let below = match &self.below {
            Some(below) => format!(", over {below:?}"),
            None => String::new(),
        };
        let redo = match &self.redo {
            Some(_) => ", with a redo log",
            None => "",
        };
        let copies = if self.copies { ", copied on read" } else { "" };
        format!("qcow2 {options}, filled: {filled:?}{tiny}{kept}{redo}{below}{copies}")
    }

    fn create(&self, sectors: u64) -> Vec<u8> {
        let mut made = self.made.lock().unwrap();
        let make = || match self.data_file {
            true => files::make(self.options, self.filled, sectors, self.data_bytes()),
            false => make(self.options, self.filled, self.cluster, sectors),
        };
        made.entry(sectors).or_insert_with(make).clone()
    }

    fn content(&self, sectors: u64) -> Vec<Value> {
        match self.filled {
            Filled::Not => (0..sectors).map(|sector| self.behind(sector)).collect(),
            Filled::SnapshotsOver => (0..)
                .zip(own_over(self.cluster, sectors))
                .map(|(sector, own)| own.unwrap_or_else(|| self.behind(sector)))
                .collect(),
            filled => content(filled, sectors),
        }
    }

    fn open(&self, file: Arc<Node>) -> Result<Arc<Node>, String> {
        self.copied(self.opened(file, None)?)
    }

    fn serve(&self, file: Arc<Node>) -> Result<Arc<Node>, String> {
        let Some(dir) = &self.redo else {
            return self.open(file);
        };
        let node = self.opened(file, Some(dir.path().into()))?;
        allow_all(&node);
        let all = Access {
            held: Permissions::ALL,
            shared: Permissions::ALL,
        };
        node.activate(all).map_err(|error| error.to_string())?;
        self.copied(node)
    }

    fn outlives_kill(&self) -> bool {
        self.redo.is_some()
    }

    fn booted(&self) {
        let left = self
            .redo
            .iter()
            .flat_map(|dir| fs::read_dir(dir.path()).unwrap());
        left.for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());
    }

    fn check(&self, disk: &[u8]) -> Vec<Finding> {
        let (data, disk) = disk.split_at(index(self.data_bytes()).min(disk.len()));
        if self.is_raw()
            && let Err(what) = files::is_the_disk(disk, data, self.options.contains("extended_l2"))
        {
            return vec![Finding::corruption(what)];
        }
        let (verdict, expected, texts) = ours(disk);
        let number = self.checked.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(ASKED_ONE_IN) {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let (other, said) = qemu_check::of_bytes(disk);
            if other != expected {
                let text =
                    format!("the checkers disagree: {verdict:?} ({texts}), qemu-img: {said}");
                return vec![Finding::corruption(text)];
            }
        }
        if let Some(what) = self.lost(disk) {
            return vec![Finding::corruption(what)];
        }
        match verdict {
            Verdict::Clean => Vec::new(),
            Verdict::Leaks => vec![Finding::leak(texts)],
            Verdict::Corrupt => vec![Finding::corruption(texts)],
        }
    }

    fn second_opinion(&self, disk: &[u8]) -> Option<String> {
        let disk = disk.get(index(self.data_bytes())..)?;
        let (verdict, said) = qemu_check::of_bytes(disk);
        let kept = std::env::var_os("STANDFAST_SWEEP_IMAGE");
        if let Some(path) = kept {
            fs::write(path, disk).unwrap();
        }
        Some(format!("qemu-img check: {verdict:?}: {said}"))
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn cluster(&self) -> u64 {
        self.cluster
    }

    /// In a data file what is discarded is discarded at once.
    fn discards_are_private(&self) -> bool {
        !self.data_file
    }

    fn resizes_to(&self) -> Option<u64> {
        self.longest
    }
}
