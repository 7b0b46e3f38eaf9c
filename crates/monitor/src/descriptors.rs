//! Descriptors that clients have passed: those that have a name (`getfd`), and those in sets (`add-fd`),
//! which are opened by the path `/dev/fdset/N`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use parking_lot::Mutex;
use qapi::QmpError;
use qapi::types::{AddfdInfo, FdsetFdInfo, FdsetInfo};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// What the path of a set begins with.
const FDSET: &str = "/dev/fdset/";

/// Most descriptors that are kept at once: clients that pass ever more leave the daemon enough for its work.
const KEPT_MAX: usize = 512;

/// Flags that a copy of a descriptor may have otherwise; it shares them with the one that was passed.
const SETTABLE: OFlags = OFlags::APPEND
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOATIME)
    .union(OFlags::DIRECT);

/// A descriptor in a set.
#[derive(Debug)]
struct Member {
    fd: OwnedFd,
    opaque: Option<String>,
}

#[derive(Debug, Default)]
struct Kept {
    sets: BTreeMap<i64, Vec<Member>>,
    named: BTreeMap<String, OwnedFd>,
}

impl Kept {
    fn count(&self) -> usize {
        self.named.len() + self.sets.values().map(Vec::len).sum::<usize>()
    }

    fn check_room(&self) -> Result<(), QmpError> {
        if self.count() < KEPT_MAX {
            return Ok(());
        }
        Err(QmpError::generic(format!(
            "{KEPT_MAX} file descriptors are kept already: remove some with remove-fd or closefd"
        )))
    }
}

/// See the [module](self). All clients share them.
#[derive(Debug, Default)]
pub struct Descriptors {
    kept: Mutex<Kept>,
}

/// The set that a path means: none if it is the path of something else.
///
/// # Errors
/// If it is no path of a set, although it begins like one.
pub fn fdset_of(path: &str) -> Option<Result<i64, String>> {
    let number = path.strip_prefix(FDSET)?;
    let id = number.parse::<i64>().ok();
    // The digits alone.
    let id = id.filter(|id| *id >= 0 && number.bytes().all(|byte| byte.is_ascii_digit()));
    Some(id.ok_or_else(|| format!("Could not parse fdset {path}")))
}

impl Descriptors {
    /// Adds one to a set, which is made if it is not there; without an id to a new set.
    ///
    /// # Errors
    /// If the id is negative, or too many are kept; the descriptor is closed then.
    pub fn add(
        &self,
        fd: OwnedFd,
        fdset_id: Option<i64>,
        opaque: Option<String>,
    ) -> Result<AddfdInfo, QmpError> {
        if fdset_id.is_some_and(|id| id < 0) {
            return Err(QmpError::generic(
                "Parameter 'fdset-id' expects a non-negative value",
            ));
        }
        let mut kept = self.kept.lock();
        kept.check_room()?;
        let fdset_id = match fdset_id {
            Some(id) => id,
            // The smallest that is free.
            None => {
                let used = kept.sets.keys().zip(0..);
                let in_a_row = used.take_while(|(id, place)| **id == *place).count();
                i64::try_from(in_a_row).unwrap_or(i64::MAX)
            }
        };
        let number = i64::from(fd.as_raw_fd());
        let set = kept.sets.entry(fdset_id).or_default();
        set.push(Member { fd, opaque });
        Ok(AddfdInfo {
            fdset_id,
            fd: number,
        })
    }

    /// Closes one of a set, or all. What was opened by the set's path is open still.
    ///
    /// # Errors
    /// If there is no such one.
    pub fn remove(&self, fdset_id: i64, fd: Option<i64>) -> Result<(), QmpError> {
        let mut kept = self.kept.lock();
        let set = kept.sets.get_mut(&fdset_id);
        let is_it = |member: &Member| fd.is_none_or(|fd| fd == i64::from(member.fd.as_raw_fd()));
        let found = set.as_deref().is_some_and(|set| set.iter().any(is_it));
        let (true, Some(set)) = (found, set) else {
            let fd = fd.map(|fd| format!(", fd:{fd}")).unwrap_or_default();
            return Err(not_found(&format!("fdset-id:{fdset_id}{fd}")));
        };
        let (gone, left): (Vec<_>, Vec<_>) = std::mem::take(set).into_iter().partition(is_it);
        if left.is_empty() {
            kept.sets.remove(&fdset_id);
        } else {
            *set = left;
        }
        drop(kept);
        close(gone.into_iter().map(|member| member.fd));
        Ok(())
    }

    /// All sets, the newest id first, as QEMU lists them.
    pub fn sets(&self) -> Vec<FdsetInfo> {
        let kept = self.kept.lock();
        let info = |member: &Member| FdsetFdInfo {
            fd: i64::from(member.fd.as_raw_fd()),
            opaque: member.opaque.clone(),
        };
        let sets = kept.sets.iter().rev().map(|(id, set)| FdsetInfo {
            fdset_id: *id,
            fds: set.iter().map(info).collect(),
        });
        sets.collect()
    }

    /// Gives one a name; one that had it is closed.
    ///
    /// # Errors
    /// If the name could be a number, or too many are kept; the descriptor is closed then.
    pub fn name(&self, name: &str, fd: OwnedFd) -> Result<(), QmpError> {
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(QmpError::generic(
                "Parameter 'fdname' expects a name not starting with a digit",
            ));
        }
        let mut kept = self.kept.lock();
        if !kept.named.contains_key(name) {
            kept.check_room()?;
        }
        let former = kept.named.insert(name.to_owned(), fd);
        drop(kept);
        close(former);
        Ok(())
    }

    /// Takes the one of that name out.
    ///
    /// # Errors
    /// If there is none.
    pub fn take(&self, name: &str) -> Result<OwnedFd, QmpError> {
        let found = self.kept.lock().named.remove(name);
        found.ok_or_else(|| not_found(name))
    }

    /// Opens a set: a copy of one that was passed for reading, or for reading and writing. With `direct` it
    /// has O_DIRECT from then on, and without it has not.
    ///
    /// # Errors
    /// ENOENT: there is no such set. EACCES: it has none for that. Others are the system's.
    pub fn open(&self, fdset_id: i64, writable: bool, direct: bool) -> io::Result<OwnedFd> {
        let kept = self.kept.lock();
        let set = kept.sets.get(&fdset_id).ok_or(Errno::NOENT)?;
        let wanted = match writable {
            true => OFlags::RDWR,
            false => OFlags::RDONLY,
        };
        let fits = |member: &&Member| {
            fcntl_getfl(&member.fd).is_ok_and(|flags| flags & OFlags::RWMODE == wanted)
        };
        let member = set.iter().find(fits).ok_or(Errno::ACCESS)?;
        let fd = member.fd.try_clone()?;
        drop(kept);
        let mut flags = fcntl_getfl(&fd)? - SETTABLE;
        flags.set(OFlags::DIRECT, direct);
        fcntl_setfl(&fd, flags)?;
        Ok(fd)
    }
}

fn not_found(name: &str) -> QmpError {
    QmpError::generic(format!("File descriptor named '{name}' not found"))
}

/// Closing may ask the storage: that keeps nobody.
pub(crate) fn close(descriptors: impl IntoIterator<Item = OwnedFd>) {
    let descriptors: Vec<_> = descriptors.into_iter().collect();
    if !descriptors.is_empty() {
        block::drop_beside(descriptors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn fd(writable: bool) -> OwnedFd {
        let null = File::options().read(true).write(writable).open("/dev/null");
        null.unwrap().into()
    }

    #[test]
    fn sets() {
        let all = Descriptors::default();
        let add = |id, opaque: Option<&str>| {
            let opaque = opaque.map(str::to_owned);
            all.add(fd(false), id, opaque).map_err(|error| error.desc)
        };
        assert_eq!(add(None, None).unwrap().fdset_id, 0);
        assert_eq!(add(Some(2), Some("o")).unwrap().fdset_id, 2);
        assert_eq!(add(None, None).unwrap().fdset_id, 1);
        let last = add(None, None).unwrap();
        assert_eq!(last.fdset_id, 3);
        let second = add(Some(3), None).unwrap();
        assert_eq!(
            add(Some(-1), None).unwrap_err(),
            "Parameter 'fdset-id' expects a non-negative value"
        );
        let sets = all.sets();
        let ids: Vec<_> = sets.iter().map(|set| set.fdset_id).collect();
        assert_eq!(ids, [3, 2, 1, 0]);
        assert_eq!(sets[1].fds[0].opaque.as_deref(), Some("o"));
        let remove = |id, fd| all.remove(id, fd).map_err(|error| error.desc);
        for (id, fd, name) in [(9, None, "fdset-id:9"), (3, Some(-7), "fdset-id:3, fd:-7")] {
            let text = format!("File descriptor named '{name}' not found");
            assert_eq!(remove(id, fd), Err(text));
        }
        assert_eq!(remove(3, Some(last.fd)), Ok(()));
        assert_eq!(all.sets()[0].fds[0].fd, second.fd);
        assert_eq!(remove(3, Some(second.fd)), Ok(()));
        assert_eq!(
            remove(3, None).unwrap_err(),
            "File descriptor named 'fdset-id:3' not found"
        );
        assert_eq!(remove(0, None), Ok(()));
        assert_eq!(add(None, None).unwrap().fdset_id, 0);
    }

    #[test]
    fn a_set_is_opened_as_it_was_passed() {
        let all = Descriptors::default();
        let errno = |result: io::Result<OwnedFd>| result.unwrap_err().raw_os_error();
        assert_eq!(errno(all.open(0, false, false)), Some(libc_errno::ENOENT));
        all.add(fd(false), Some(0), None).unwrap();
        assert_eq!(errno(all.open(0, true, false)), Some(libc_errno::EACCES));
        assert!(all.open(0, false, false).is_ok());
        all.add(fd(true), Some(0), None).unwrap();
        let opened = all.open(0, true, false).unwrap();
        assert_eq!(fcntl_getfl(&opened).unwrap() & OFlags::RWMODE, OFlags::RDWR);
        // It is open for as long as somebody has it.
        all.remove(0, None).unwrap();
        assert!(fcntl_getfl(&opened).is_ok());
    }

    mod libc_errno {
        pub const ENOENT: i32 = 2;
        pub const EACCES: i32 = 13;
    }

    #[test]
    fn names() {
        let all = Descriptors::default();
        let desc = |result: Result<(), QmpError>| result.map_err(|error| error.desc);
        let name = |name| desc(all.name(name, fd(false)));
        assert_eq!(
            name("1x").unwrap_err(),
            "Parameter 'fdname' expects a name not starting with a digit"
        );
        assert_eq!((name("x"), name("x"), name("")), (Ok(()), Ok(()), Ok(())));
        assert!(all.take("x").is_ok());
        let gone = all.take("x").unwrap_err().desc;
        assert_eq!(gone, "File descriptor named 'x' not found");
    }

    /// A client may pass ever more of them.
    #[test]
    fn there_is_an_end() {
        let all = Descriptors::default();
        for n in 0..KEPT_MAX {
            match n % 2 {
                0 => assert!(all.add(fd(false), None, None).is_ok()),
                _ => assert!(all.name(&format!("n{n}"), fd(false)).is_ok()),
            }
        }
        assert!(all.add(fd(false), Some(0), None).is_err());
        assert!(all.name("another", fd(false)).is_err());
        assert!(
            all.name("n1", fd(false)).is_ok(),
            "it takes a place that is there"
        );
        all.remove(0, None).unwrap();
        assert!(all.name("another", fd(false)).is_ok());
    }

    #[test]
    fn paths() {
        assert_eq!(fdset_of("/dev/fdset/7"), Some(Ok(7)));
        assert_eq!(fdset_of("/dev/fdset"), None);
        assert_eq!(fdset_of("/srv/disk.img"), None);
        for wrong in ["", "x", "-1", "+1", "1/", "99999999999999999999"] {
            let path = format!("/dev/fdset/{wrong}");
            assert_eq!(
                fdset_of(&path),
                Some(Err(format!("Could not parse fdset {path}")))
            );
        }
    }
}
