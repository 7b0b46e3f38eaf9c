//! The redo log of one opening of an image: a ring in a file of a directory, named by the tag of the image.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use block::MappedFile;
use parking_lot::Mutex;

use super::record::{Change, Record, records};
use super::ring::{self, Head, Ring};

/// One looks at directories at a time: files that are just being made are nobody's yet.
static DIRECTORIES: Mutex<()> = Mutex::new(());

/// How often another tag is tried.
const TRIES: usize = 16;

/// See the [module](self). Dropped, it leaves its file only if something is in it that counts.
#[derive(Debug)]
pub struct Log {
    head: Head,
    ring: Ring<MappedFile>,
}

fn path_of(dir: &Path, tag: u32) -> PathBuf {
    dir.join(file_name_of(tag))
}

/// The name of the file with the log of that tag.
pub fn file_name_of(tag: u32) -> String {
    format!("qcow2-{tag:08x}.redo")
}

fn is_one(name: &str) -> bool {
    let tag = name
        .strip_prefix("qcow2-")
        .and_then(|rest| rest.strip_suffix(".redo"));
    tag.is_some_and(|tag| tag.len() == 8 && u32::from_str_radix(tag, 16).is_ok())
}

/// What a directory has for an image.
#[derive(Debug)]
pub struct Found {
    /// What was written for the image as it is, whether it has something or not.
    pub log: Option<Log>,
    /// How many changes there were for what the image is not any more. They are gone.
    pub lost: u64,
    /// How many there are with its tag and its name, of another file or attachment.
    pub of_another: u64,
}

impl Log {
    /// A new one for the image that `head` names, whose tag is chosen here.
    ///
    /// # Errors
    /// The system's.
    pub fn create(dir: &Path, head: &Head) -> io::Result<Self> {
        let _turn = DIRECTORIES.lock();
        let mut tries = 0;
        let (tag, file) = loop {
            let tag = any_tag();
            match MappedFile::create(&path_of(dir, tag), ring::BYTES) {
                Ok(file) => break (tag, file),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < TRIES => {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        };
        let head = Head {
            tag,
            ..head.clone()
        };
        let ring = Ring::new(file, &head);
        let ring = ring.ok_or_else(|| io::Error::other("the name of the image is too long"))?;
        Ok(Self { head, ring })
    }

    /// Looks for what former daemons have left in `dir` of the image that `head` names, whose tag is that in its header; none: it has
    /// none. All that is no good for anybody is removed.
    ///
    /// # Errors
    /// The system's.
    pub fn find(dir: &Path, head: &Head) -> io::Result<Found> {
        let _turn = DIRECTORIES.lock();
        let mut found = Found {
            log: None,
            lost: 0,
            of_another: 0,
        };
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if !name.is_some_and(is_one) {
                continue;
            }
            // Someone else's, or none at all: not ours to judge.
            let Ok(Some(file)) = MappedFile::open(&path, ring::BYTES) else {
                continue;
            };
            let Some((is, ring)) = Ring::open(file) else {
                fs::remove_file(&path)?;
                continue;
            };
            let mut log = Self { head: is, ring };
            let is_ours = is_same(&log.head, head);
            if is_ours && log.head.tag == head.tag && log.path() == path_of(dir, head.tag) {
                found.log = Some(log);
                continue;
            }
            if is_ours {
                found.lost += log.live_changes();
            }
            let image = (log.head.tag, log.head.image.name(), &*log.head.boot_id);
            if !is_ours && image == (head.tag, head.image.name(), &*head.boot_id) {
                found.of_another += log.live_changes();
            }
            // No client is left of another boot.
            if is_ours || log.head.boot_id != head.boot_id {
                log.forget();
            }
        }
        Ok(found)
    }

    /// Its tag.
    pub const fn tag(&self) -> u32 {
        self.head.tag
    }

    /// Whose it is.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.ring.storage().path()
    }

    /// How many changes there are that are not void.
    pub fn live_changes(&self) -> u64 {
        let live = self.ring.live();
        live.iter().map(|record| u64::from(record.count())).sum()
    }

    /// Those, in the order in which they were made.
    pub fn live(&self) -> Vec<Record> {
        self.ring.live()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Whether so many records fit.
    pub fn has_room(&self, records: usize) -> bool {
        self.ring.room() >= records
    }

    /// Writes records, for which there is room.
    pub fn push(&mut self, records: &[Record]) {
        for record in records {
            let pushed = self.ring.push(record);
            debug_assert!(pushed, "nobody has looked whether there is room");
        }
    }

    /// The number of the next record.
    pub const fn next(&self) -> u64 {
        self.ring.next()
    }

    /// All before `number` is on disk.
    pub fn void_before(&mut self, number: u64) {
        self.ring.void_before(number);
    }

    /// As [`Ring::is_doubtful`].
    pub fn is_doubtful(&self) -> bool {
        self.ring.is_doubtful()
    }

    /// As [`Ring::set_doubtful`].
    pub fn set_doubtful(&mut self, doubtful: bool) {
        self.ring.set_doubtful(doubtful);
    }

    /// What is in it counts for nobody any more.
    pub fn forget(&mut self) {
        self.ring.void_before(self.ring.next());
    }

    /// The records of changes.
    pub fn records(&self, changes: impl IntoIterator<Item = Change>) -> Vec<Record> {
        records(changes, 1 << self.head.cluster_bits)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if !self.ring.is_empty() {
            return;
        }
        if let Err(error) = self.ring.storage().remove() {
            let path = self.path().display();
            tracing::warn!("'{path}', which is not needed any more, cannot be removed: {error}");
        }
    }
}

/// A tag: any number but 0.
fn any_tag() -> u32 {
    let random = RandomState::new().build_hasher().finish();
    u32::try_from(random >> 32).unwrap_or(0).max(1)
}

/// Whether both are of one image and boot. One that was copied, or put in the place of the other, is another one.
fn is_same(one: &Head, other: &Head) -> bool {
    let of = |head: &Head| {
        let image = &head.image;
        let (name, object) = (image.name().to_owned(), image.object().to_owned());
        match object.is_empty() {
            true => (name, object),
            false => (String::new(), object),
        }
    };
    of(one) == of(other)
        && one.boot_id == other.boot_id
        && one.cluster_bits == other.cluster_bits
        && one.extended == other.extended
}

#[cfg(test)]
mod tests {
    use super::super::record::Which;
    use super::*;
    use crate::format::L2Entry;
    use block::Image;

    fn head(object: &str, boot_id: &str) -> Head {
        Head {
            tag: 0,
            cluster_bits: 16,
            extended: false,
            boot_id: boot_id.to_owned(),
            image: Image::new("/a/disk", object),
        }
    }

    fn change(at: u64) -> Change {
        Change {
            which: Which::L2,
            at,
            before: L2Entry::default(),
            after: L2Entry {
                descriptor: at << 16,
                bitmap: 0,
            },
        }
    }

    /// What a daemon leaves that was killed after these changes.
    fn left(dir: &Path, head: &Head, changes: u64) -> u32 {
        let mut log = Log::create(dir, head).unwrap();
        let records = log.records((0..changes).map(|at| change(2 * at)));
        log.push(&records);
        log.tag()
    }

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn what_was_left_is_found_by_the_tag() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let of = |object: &str, tag| Head {
            tag,
            ..head(object, "boot")
        };
        let tag = left(dir, &of("a", 0), 3);
        let other = left(dir, &of("b", 0), 2);
        // Another image: neither is touched, whatever its tag.
        let found = Log::find(dir, &of("c", tag)).unwrap();
        assert!(found.log.is_none());
        assert_eq!((found.lost, found.of_another), (0, 3));
        let found = Log::find(dir, &of("a", tag)).unwrap();
        let log = found.log.unwrap();
        assert_eq!((log.live_changes(), found.lost), (3, 0));
        // In use.
        let again = Log::find(dir, &of("a", tag)).unwrap();
        assert!(again.log.is_none() && again.lost == 0);
        drop(log);
        assert_eq!(files(dir), 2);
        // Somebody else has written it.
        let found = Log::find(dir, &of("b", other ^ 1)).unwrap();
        assert!(found.log.is_none());
        assert_eq!((found.lost, files(dir)), (2, 1));
        let found = Log::find(dir, &of("a", 0)).unwrap();
        assert!(found.log.is_none());
        assert_eq!((found.lost, files(dir)), (3, 0));
    }

    #[test]
    fn what_is_no_good_for_anybody_goes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        left(dir, &head("a", "the boot before"), 3);
        left(dir, &head("b", "boot"), 0);
        left(dir, &head("c", "boot"), 1);
        fs::write(dir.join("qcow2-00000001.redo"), vec![1; ring::BYTES]).unwrap();
        fs::write(dir.join("qcow2-00000002.redo"), "x").unwrap();
        fs::write(dir.join("standfastd.state"), "x").unwrap();
        let found = Log::find(dir, &head("d", "boot")).unwrap();
        assert!(found.log.is_none() && found.lost == 0);
        // That of c, the one that is too short, the state.
        assert_eq!(files(dir), 3);
    }

    #[test]
    fn its_file_goes_when_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::create(dir.path(), &head("a", "boot")).unwrap();
        log.push(&log.records([change(1)]));
        log.forget();
        assert!(log.is_empty() && log.path().exists());
        drop(log);
        assert_eq!(files(dir.path()), 0);
    }
}
