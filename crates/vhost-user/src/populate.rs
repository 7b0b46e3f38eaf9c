//! Whether memory of a client that is mapped here is there: a file can be shorter than its mapping.
//!
//! The kernel is asked to fault the pages in: it says EFAULT where an access would raise SIGBUS. The
//! content stays as it is.

use libc::iovec;

/// How the memory is to be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads it.
    Load,
    /// The device writes to it.
    Store,
}

/// Whether all of these buffers, which are mapped, can be accessed. True where the kernel cannot tell.
pub(crate) fn is_there(iov: &[iovec], access: Access) -> bool {
    let advice = match access {
        Access::Load => libc::MADV_POPULATE_READ,
        Access::Store => libc::MADV_POPULATE_WRITE,
    };
    let page = page_size();
    iov.iter().filter(|one| one.iov_len > 0).all(|one| {
        let skip = one.iov_base.addr() & (page - 1);
        let start = one.iov_base.wrapping_byte_sub(skip);
        // SAFETY: whole pages of a mapping of ours, which stays while somebody accesses it. Nothing
        // is changed but which of them are in memory.
        match unsafe { libc::madvise(start, skip + one.iov_len, advice) } {
            0 => true,
            _ => {
                let error = std::io::Error::last_os_error().raw_os_error();
                !matches!(error, Some(libc::EFAULT | libc::EHWPOISON))
            }
        }
    })
}

fn page_size() -> usize {
    // SAFETY: no memory is involved.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two())
        .unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Mapping;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_cut_off_is_not_there() {
        let page = page_size();
        let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memfd);
        file.set_len(16 * page as u64).unwrap();
        file.write_all_at(&[7; 64], 0).unwrap();
        let mapping = Mapping::of_file(file.as_fd(), 0, 16 * page as u64).unwrap();
        let at = |offset: usize, len| iovec {
            iov_base: mapping.pointer().as_ptr().wrapping_add(offset).cast(),
            iov_len: len,
        };
        let all = [at(5, 3 * page), at(0, 0), at(15 * page, page)];
        for access in [Access::Load, Access::Store] {
            assert!(is_there(&all, access));
        }
        file.set_len(8 * page as u64).unwrap();
        for access in [Access::Load, Access::Store] {
            assert!(is_there(&[at(5, 3 * page), at(8 * page - 1, 1)], access));
            assert!(is_there(&[at(8 * page, 0)], access), "nothing is there");
            for lost in [at(8 * page - 1, 2), at(8 * page, 1), at(15 * page, page)] {
                assert!(!is_there(&[at(0, 1), lost], access), "{lost:?}");
            }
        }
        assert!(!mapping.is_poisoned(), "nobody has touched it");
        let mut content = [0; 64];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(content, [7; 64]);
    }
}
