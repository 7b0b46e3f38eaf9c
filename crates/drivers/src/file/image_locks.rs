//! Who else may use the image: as long as somebody uses the node, what its users hold and share is locked.

use std::sync::atomic::Ordering;

use block::{Access, ImageId, ImageLocks, LockError, Permissions};

use super::driver::FileDriver;
use super::lock::Locked;
use super::measure::Length;
use super::options::Locking;
use super::probe;
use crate::OpenError;

impl ImageLocks for FileDriver {
    fn lock(&self, access: Access) -> Result<(), LockError> {
        self.begin(access, Locked::lock)
    }

    fn settle(&self, access: Access) {
        self.fd.settle(self.locks_for(access));
        if access.held.is_empty() {
            self.is_used.store(false, Ordering::Relaxed);
        }
    }

    fn lock_beside(&self, access: Access) -> Result<(), LockError> {
        self.begin(access, Locked::lock_beside)
    }

    fn image(&self) -> ImageId {
        self.image
    }

    fn needs(&self, access: Access) -> Access {
        self.locks_for(access)
    }
}

impl FileDriver {
    fn locks_for(&self, access: Access) -> Access {
        match self.locking {
            Locking::Off => Access::NONE,
            Locking::On | Locking::Auto => locks_for(access, self.force_share),
        }
    }

    fn begin(
        &self,
        access: Access,
        lock: fn(&Locked, Access) -> Result<(), LockError>,
    ) -> Result<(), LockError> {
        lock(&self.fd, self.locks_for(access))?;
        if access.held.is_empty() {
            return Ok(());
        }
        let is_first = !self.is_used.load(Ordering::Relaxed);
        if is_first {
            if let Err(error) = self.measure_again() {
                self.fd.settle(Access::NONE);
                return Err(lock_error(error));
            }
            self.is_used.store(true, Ordering::Relaxed);
        }
        if modifies(access) {
            self.ask_for_holes();
        }
        Ok(())
    }

    /// Nobody has used the node so far, and others may have changed the image.
    fn measure_again(&self) -> Result<(), OpenError> {
        let length = Length::of(self.fd(), self.kind, self.zero_align, &self.filename)?;
        self.prepare_tail(length.node)?;
        self.length.store(length.node, Ordering::Release);
        self.tail.set(length.end(), length.node);
        self.size_taken(length.image);
        Ok(())
    }

    /// Asks the file system whether it can give space back. That is a change of the file, though not of what
    /// it holds, and beyond its end: nobody else may be making it longer.
    fn ask_for_holes(&self) {
        if self.deallocation.is_to_be_asked() {
            // What does not say how long it is now is asked the next time.
            if let Ok(stat) = probe::stat(self.fd()) {
                let found = probe::deallocates(self.fd(), &stat);
                self.deallocation.found(found);
            }
        }
    }
}

fn lock_error(error: OpenError) -> LockError {
    let OpenError { errno, desc, hint } = error;
    let errno = match errno {
        // That would be a lock.
        libc::EAGAIN => libc::EIO,
        errno => errno,
    };
    LockError { errno, desc, hint }
}

fn modifies(access: Access) -> bool {
    !access.held.both(Permissions::MODIFYING).is_empty()
}

/// What is locked while the users of a node have `access`.
///
/// A writer also holds *resize* and shares neither *write* nor *resize*, as QEMU's format drivers
/// do: two daemons with one image are a mistake. A reader refuses writers, because what it reads
/// would change under it, unless it is told not to care. Whom nobody uses holds nothing.
fn locks_for(access: Access, force_share: bool) -> Access {
    let read = Permissions::CONSISTENT_READ;
    let unchanged = read.and(Permissions::WRITE_UNCHANGED);
    if access.held.is_empty() {
        return Access::NONE;
    }
    if force_share {
        return Access {
            held: read,
            shared: Permissions::ALL,
        };
    }
    let (held, shared) = match modifies(access) {
        true => (
            read.and(Permissions::WRITE).and(Permissions::RESIZE),
            unchanged,
        ),
        false => (read, unchanged.and(Permissions::RESIZE)),
    };
    Access {
        held,
        shared: shared.both(access.shared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_by_what_the_users_have() {
        const NONE: Permissions = Permissions::NONE;
        const ALL: Permissions = Permissions::ALL;
        const READ: Permissions = Permissions::CONSISTENT_READ;
        const WRITE: Permissions = Permissions::WRITE;
        const UNCHANGED: Permissions = Permissions::WRITE_UNCHANGED;
        const RESIZE: Permissions = Permissions::RESIZE;
        let writer = (READ.and(WRITE).and(RESIZE), READ.and(UNCHANGED));
        let reader = (READ, ALL.without(WRITE));
        for (held, shared, force_share, expected) in [
            // Nobody uses it, whatever those above it would not share.
            (NONE, ALL, false, (NONE, ALL)),
            (NONE, NONE, false, (NONE, ALL)),
            (NONE, ALL, true, (NONE, ALL)),
            // Readers.
            (READ, ALL, false, reader),
            (READ, READ, false, (READ, READ)),
            (
                READ,
                ALL.without(RESIZE),
                false,
                (READ, READ.and(UNCHANGED)),
            ),
            (READ, NONE, false, (READ, NONE)),
            // Whoever changes anything is a writer.
            (READ.and(WRITE), ALL, false, writer),
            (WRITE, ALL, false, writer),
            (UNCHANGED, ALL, false, writer),
            (RESIZE, ALL, false, writer),
            (ALL, ALL.without(UNCHANGED), false, (writer.0, READ)),
            (ALL, NONE, false, (writer.0, NONE)),
            // Readers that do not mind anything.
            (READ, ALL, true, (READ, ALL)),
            (READ, NONE, true, (READ, ALL)),
        ] {
            let locks = locks_for(Access { held, shared }, force_share);
            assert_eq!((locks.held, locks.shared), expected, "{held} {shared}");
        }
    }
}
