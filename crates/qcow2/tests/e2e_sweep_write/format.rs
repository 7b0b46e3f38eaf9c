//! The driver as a format of the sweep, and what qemu-img says of the images that it leaves.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
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

/// Clusters of an image that has only tables.
const TABLES: u64 = 64;

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
    /// That is no longer than it has to be, and the image is on a device.
    grows: bool,
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
            grows: false,
            made: Mutex::default(),
            checked: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        }
    }

    /// Which parts of the storage are the image, and its data file if there is one. That is as long as the disk can become, as a
    /// device, and the image is behind it; or it is behind the image, and grows.
    fn parts(&self) -> [Option<Range<Option<u64>>>; 2] {
        let disk = bytes_of(self.longest.unwrap_or(self.sectors).max(self.sectors));
        match (self.data_file, self.grows) {
            (false, _) => [Some(None..None), None],
            (true, false) => [Some(Some(disk)..None), Some(Some(0)..Some(disk))],
            (true, true) => {
                let room = Some(bytes_of(TABLES * self.cluster));
                [Some(Some(0)..room), Some(room..None)]
            }
        }
    }

    /// The same of what is there: the image, and the data file.
    fn contents<'a>(&self, disk: &'a [u8]) -> [&'a [u8]; 2] {
        self.parts().map(|part| {
            let Some(part) = part else { return &[][..] };
            let at = |end: u64| index(end).min(disk.len());
            &disk[at(part.start.unwrap_or(0))..part.end.map_or(disk.len(), at)]
        })
    }

    fn is_raw(&self) -> bool {
        self.options.contains("data_file_raw=on")
    }

    pub fn filled(self, filled: Filled) -> Self {
        Self { filled, ..self }
    }

    /// Its data file has only what is needed of it, and grows.
    pub fn growing(self) -> Self {
        Self {
            grows: true,
            ..self
        }
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
        let [image, data] = self.parts();
        let data_file = data.map(|data| Window::node("data", &file, data));
        let file = match (&data_file, image) {
            (Some(_), Some(image)) => Window::node("image", &file, image),
            _ => file,
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
        let grows = if self.grows { ", growing" } else { "" };
        let copies = if self.copies { ", copied on read" } else { "" };
        format!("qcow2 {options}, filled: {filled:?}{tiny}{kept}{redo}{grows}{below}{copies}")
    }

    fn create(&self, sectors: u64) -> Vec<u8> {
        let mut made = self.made.lock().unwrap();
        let make = || match self.data_file {
            true => {
                let [image, data] = self.parts();
                let end = |part: Option<Range<Option<u64>>>| part.and_then(|part| part.end);
                files::make(self.options, self.filled, sectors, [end(image), end(data)])
            }
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
        let [disk, data] = self.contents(disk);
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
        let [disk, _] = self.contents(disk);
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
