//! The files that disks lie in.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::loads::Storage;
use crate::qcow2;
use crate::server::Server;

/// The disk of [`Storage::Qcow2Fresh`]: so long that nothing is written twice, or hardly anything.
const FRESH_BYTES: u64 = 64 << 30;
/// The disk of [`Storage::Qcow2Large`]: 128 MiB of L2 tables, and 32 MiB of them are remembered.
const LARGE_BYTES: u64 = 1 << 40;

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A written file in memory.
    Tmpfs,
    /// A written file on disk.
    Disk,
    /// The same as a qcow2 image.
    Qcow2,
    /// An image without any cluster, and its like that is a plain file.
    Fresh,
    FreshRaw,
    /// An image over the one before, with some of its own; the lowest is over [`Self::Qcow2`].
    Layer(u8),
    /// An image over [`Self::Qcow2`] without any cluster.
    Overlay,
    /// The same as [`Self::Qcow2`], with its clusters in a data file; and that.
    WithData,
    Data,
    /// An image whose clusters are all allocated, and empty, and its like.
    Large,
    LargeRaw,
}

/// The uppermost image of the chain of five.
const TOP: u8 = 4;

impl Kind {
    /// What a server gets; nothing for null-co.
    fn of(storage: Storage, server: Server) -> Option<Self> {
        let is_raw = server == Server::StandfastRaw;
        Some(match storage {
            Storage::Null => return None,
            Storage::Tmpfs => Self::Tmpfs,
            Storage::Disk => Self::Disk,
            Storage::Qcow2 | Storage::Qcow2Chain | Storage::Qcow2Data if is_raw => Self::Disk,
            Storage::Qcow2 => Self::Qcow2,
            Storage::Qcow2Fresh if is_raw => Self::FreshRaw,
            Storage::Qcow2Fresh => Self::Fresh,
            Storage::Qcow2Chain => Self::Layer(TOP),
            Storage::Qcow2Overlay => Self::Overlay,
            Storage::Qcow2Data => Self::WithData,
            Storage::Qcow2Large if is_raw => Self::LargeRaw,
            Storage::Qcow2Large => Self::Large,
        })
    }

    /// What is made before it: it is made of that, or over it.
    fn before(self) -> Option<Self> {
        match self {
            Self::Qcow2 | Self::Data => Some(Self::Disk),
            Self::WithData => Some(Self::Data),
            Self::Layer(1) | Self::Overlay => Some(Self::Qcow2),
            Self::Layer(number) => Some(Self::Layer(number.saturating_sub(1))),
            _ => None,
        }
    }

    /// The end of its name.
    fn name(self) -> &'static str {
        match self {
            Self::Layer(1) => "1.qcow2",
            Self::Layer(2) => "2.qcow2",
            Self::Layer(3) => "3.qcow2",
            Self::Layer(_) => "4.qcow2",
            Self::Overlay => "overlay.qcow2",
            Self::WithData => qcow2::WITH_DATA,
            Self::Data => qcow2::DATA,
            Self::Tmpfs | Self::Disk => "img",
            Self::Qcow2 => "qcow2",
            Self::Fresh => "fresh.qcow2",
            Self::FreshRaw => "fresh.img",
            Self::Large => "1t.qcow2",
            Self::LargeRaw => "1t.img",
        }
    }
}

/// Where files are made, and how long.
#[derive(Debug)]
pub struct Places {
    /// A directory on a real file system, and the bytes of a file there.
    pub disk: (PathBuf, u64),
    /// One in memory, likewise.
    pub memory: (PathBuf, u64),
}

/// All that were made.
#[derive(Debug)]
pub struct Images {
    places: Places,
    made: BTreeMap<Kind, Image>,
}

/// A file that is removed in the end.
#[derive(Debug)]
struct Image(PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        // What cannot be removed now could not be later either.
        let _ = fs::remove_file(&self.0);
    }
}

impl Images {
    /// None yet.
    pub fn new(places: Places) -> Self {
        Self {
            places,
            made: BTreeMap::new(),
        }
    }

    /// Makes what a server gets, if there is to be one and is not.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn make(&mut self, storage: Storage, server: Server) -> Result<()> {
        match Kind::of(storage, server) {
            Some(kind) => self.made(kind),
            None => Ok(()),
        }
    }

    /// Where it is; nowhere for null-co, and for what was not made.
    pub fn path(&self, storage: Storage, server: Server) -> &Path {
        let image = Kind::of(storage, server).and_then(|kind| self.made.get(&kind));
        image.map_or_else(|| Path::new(""), |image| &image.0)
    }

    /// What is to be without any cluster is so again.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn renew(&self, storage: Storage, server: Server) -> Result<()> {
        match Kind::of(storage, server) {
            Some(kind @ (Kind::Fresh | Kind::FreshRaw | Kind::Overlay)) => {
                self.write(kind, self.path(storage, server))
            }
            _ => Ok(()),
        }
    }

    /// Where that is what was made before.
    fn before(&self, kind: Kind) -> &Path {
        let image = kind.before().and_then(|before| self.made.get(&before));
        image.map_or_else(|| Path::new(""), |image| &image.0)
    }

    fn made(&mut self, kind: Kind) -> Result<()> {
        if self.made.contains_key(&kind) {
            return Ok(());
        }
        if let Some(before) = kind.before() {
            self.made(before)?;
        }
        let directory = match kind {
            Kind::Tmpfs => &self.places.memory.0,
            _ => &self.places.disk.0,
        };
        let name = format!("standfast-bench-{}.{}", std::process::id(), kind.name());
        let path = directory.join(name);
        println!("writing {}", path.display());
        // Half of one is removed, too.
        self.made.insert(kind, Image(path.clone()));
        (self.write(kind, &path)).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes a file, in place of one that is there.
    fn write(&self, kind: Kind, path: &Path) -> Result<()> {
        let file = |flags| {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true);
            options.custom_flags(flags).open(path)
        };
        match kind {
            // Every block is written: what was only allocated would be read without any I/O.
            Kind::Tmpfs => fill(file(0)?, self.places.memory.1),
            Kind::Disk => fill(file(libc::O_DIRECT)?, self.places.disk.1),
            Kind::Qcow2 => qcow2::convert(self.path(Storage::Disk, Server::Standfast), path, None),
            // It is written with the image that names it.
            Kind::Data => file(0).map(drop).map_err(Into::into),
            Kind::WithData => {
                let raw = self.path(Storage::Disk, Server::Standfast);
                qcow2::convert(raw, path, Some(self.before(kind)))
            }
            Kind::Fresh => qcow2::create(path, FRESH_BYTES, qcow2::EMPTY),
            Kind::FreshRaw => Ok(file(0)?.set_len(FRESH_BYTES)?),
            // Here it is the tables that are read.
            Kind::Layer(number) => {
                qcow2::overlay(path, self.before(kind))?;
                qcow2::write_a_fifth(path, number.into(), self.places.disk.1)
            }
            Kind::Overlay => qcow2::overlay(path, self.before(kind)),
            Kind::Large => qcow2::create(path, LARGE_BYTES, qcow2::ALLOCATED),
            Kind::LargeRaw => Ok(file(0)?.set_len(LARGE_BYTES)?),
        }
    }
}

/// Writes from memory aligned as O_DIRECT wants it, something that is not compressible to nothing.
fn fill(mut file: File, bytes: u64) -> Result<()> {
    const CHUNK: usize = 4 << 20;
    let mut memory = vec![0_u8; CHUNK + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let chunk = &mut memory[start..start + CHUNK];
    let mut state = 1_u64;
    for word in chunk.chunks_exact_mut(8) {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        word.copy_from_slice(&state.to_le_bytes());
    }
    for _ in 0..bytes / u64::try_from(CHUNK)? {
        file.write_all(chunk)?;
    }
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn images(directory: &Path) -> Images {
        Images::new(Places {
            disk: (directory.to_owned(), 8 << 20),
            memory: (directory.to_owned(), 4 << 20),
        })
    }

    #[test]
    fn images_are_written_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fill(File::create(&path).unwrap(), 8 << 20).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 8 << 20);
        assert!(
            bytes
                .chunks(4096)
                .all(|block| block.iter().any(|&byte| byte != 0))
        );
    }

    /// A qcow2 image and what it is compared with hold the same, cluster by cluster.
    #[test]
    fn an_image_has_its_like_and_both_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = images(dir.path());
        for server in [Server::Standfast, Server::StandfastRaw] {
            images.make(Storage::Qcow2, server).unwrap();
        }
        let [image, raw] = [Server::Standfast, Server::StandfastRaw]
            .map(|server| images.path(Storage::Qcow2, server).to_str().unwrap());
        assert_eq!(
            raw,
            images.path(Storage::Disk, Server::Qemu).to_str().unwrap()
        );
        let compare = [
            "compare", "-q", "-s", "-f", "qcow2", "-F", "raw", image, raw,
        ];
        testkit::qcow2_image::run("qemu-img", &compare).unwrap();
        let map = testkit::qcow2_image::run("qemu-img", &["map", "--output=json", image]).unwrap();
        assert!(!map.contains("\"data\": false"), "{map}");
        drop(images);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// All that is read and written is in the data file, whose offsets are not the guest's for all the servers know.
    #[test]
    fn clusters_lie_in_a_data_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = images(dir.path());
        for server in [Server::Standfast, Server::StandfastRaw] {
            images.make(Storage::Qcow2Data, server).unwrap();
        }
        let path = images.path(Storage::Qcow2Data, Server::Qemu);
        let [image, raw] = [Server::Standfast, Server::StandfastRaw]
            .map(|server| images.path(Storage::Qcow2Data, server).to_str().unwrap());
        let compare = [
            "compare", "-q", "-s", "-f", "qcow2", "-F", "raw", image, raw,
        ];
        testkit::qcow2_image::run("qemu-img", &compare).unwrap();
        assert!(fs::metadata(path).unwrap().len() < 1 << 20);
        assert_eq!(
            fs::metadata(qcow2::data_of(path)).unwrap().len(),
            images.places.disk.1
        );
        drop(images);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// Each image of a chain has its fifth, and all go in the end.
    #[test]
    fn a_chain_is_of_five() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = images(dir.path());
        for storage in [Storage::Qcow2Chain, Storage::Qcow2Overlay] {
            images.make(storage, Server::Standfast).unwrap();
        }
        let top = images.path(Storage::Qcow2Chain, Server::Standfast);
        let top = top.to_str().unwrap();
        let map = testkit::qcow2_image::run("qemu-img", &["map", "--output=json", top]).unwrap();
        for depth in 0..5 {
            assert!(map.contains(&format!("\"depth\": {depth}")), "{map}");
        }
        let overlay = images.path(Storage::Qcow2Overlay, Server::Qemu);
        testkit::qcow2_image::run(
            "qemu-io",
            &["-fqcow2", "-c", "write 0 4k", overlay.to_str().unwrap()],
        )
        .unwrap();
        let length = || fs::metadata(overlay).unwrap().len();
        let before = length();
        images.renew(Storage::Qcow2Overlay, Server::Qemu).unwrap();
        assert!(length() < before);
        drop(images);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_written_to_is_fresh_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = images(dir.path());
        for server in [Server::Qemu, Server::StandfastRaw] {
            images.make(Storage::Qcow2Fresh, server).unwrap();
            let path = images.path(Storage::Qcow2Fresh, server);
            let beginning = || {
                let mut bytes = [0; 512];
                let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
                read.map(|()| bytes).unwrap()
            };
            let fresh = beginning();
            let mut file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all(&[0xff; 512]).unwrap();
            images.renew(Storage::Qcow2Fresh, server).unwrap();
            assert_eq!(beginning(), fresh, "{}", server.name());
        }
    }
}
