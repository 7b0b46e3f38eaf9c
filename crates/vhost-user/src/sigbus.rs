//! SIGBUS: a client that truncates a file which is mapped here takes pages away under our own loads
//! and stores. That must harm nobody but the client.
//!
//! Every mapping of a client's file is registered. The handler looks the faulting address up,
//! puts zeroes where the mapping was, so that the access goes on, and marks the mapping as
//! poisoned; whoever works with it looks at the mark later and gives the client up. The kernel's own
//! accesses on our behalf raise nothing, they end with EFAULT.
//!
//! The table is a list that only grows, by as many entries as there are mappings at once, so the
//! handler can walk it without a lock at any time.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A place for one mapping. An `end` of 0 means that it is free.
#[derive(Debug)]
struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
    poisoned: AtomicBool,
    /// Never changes once the entry is in the list.
    next: AtomicPtr<Entry>,
}

/// The entry added last.
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(null_mut());
/// Number of mappings poisoned since the process began.
static POISONED: AtomicUsize = AtomicUsize::new(0);
static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    installed: false,
    free: Vec::new(),
});

/// Only for those who register.
#[derive(Debug)]
struct Registry {
    installed: bool,
    free: Vec<&'static Entry>,
}

/// A mapping that may lose its pages. Must be dropped before it is unmapped.
#[derive(Debug)]
pub(crate) struct Guarded(&'static Entry);

impl Guarded {
    /// Registers a mapping: whole pages, of whatever size the file system has.
    ///
    /// # Errors
    /// If the system refuses the handler.
    pub fn new(range: Range<usize>) -> io::Result<Self> {
        let mut registry = registry();
        if !registry.installed {
            install()?;
            registry.installed = true;
        }
        let entry = registry.free.pop().unwrap_or_else(add_entry);
        entry.poisoned.store(false, Ordering::Relaxed);
        // In this order, so that the handler never sees a range that is partly another one.
        entry.start.store(range.start, Ordering::Release);
        entry.end.store(range.end, Ordering::Release);
        Ok(Self(entry))
    }

    /// Whether pages were missing.
    pub fn is_poisoned(&self) -> bool {
        any_poisoned() && self.0.poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.end.store(0, Ordering::Release);
        registry().free.push(self.0);
    }
}

/// Whether any mapping has ever been poisoned; one load, for those who look often.
pub(crate) fn any_poisoned() -> bool {
    POISONED.load(Ordering::Acquire) > 0
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The caller holds the registry.
fn add_entry() -> &'static Entry {
    let entry = Box::leak(Box::new(Entry {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        poisoned: AtomicBool::new(false),
        next: AtomicPtr::new(ENTRIES.load(Ordering::Acquire)),
    }));
    ENTRIES.store(entry, Ordering::Release);
    entry
}

/// The registered mapping that has `address`. Async-signal-safe.
fn find(address: usize) -> Option<(&'static Entry, Range<usize>)> {
    // SAFETY: entries are never freed, and `next` was set before the entry was published.
    let mut at = unsafe { ENTRIES.load(Ordering::Acquire).as_ref() };
    while let Some(entry) = at {
        let end = entry.end.load(Ordering::Acquire);
        let start = entry.start.load(Ordering::Acquire);
        // The end again: the entry may just have been given to another mapping.
        if address < end && address >= start && entry.end.load(Ordering::Acquire) == end {
            return Some((entry, start..end));
        }
        // SAFETY: as above.
        at = unsafe { entry.next.load(Ordering::Acquire).as_ref() };
    }
    None
}

fn install() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    // SAFETY: all zeroes is a valid `sigaction`: no flags, nothing masked.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what is allowed
    // in one.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns to the access that failed: it succeeds now, or ends the process as it would have done
/// without us.
extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: `info` is the kernel's; for a signal that somebody has sent the address has no
    // meaning, and `si_code` is not positive.
    let (sent, address) = unsafe { ((*info).si_code <= 0, (*info).si_addr().addr()) };
    if !sent
        && let Some((entry, range)) = find(address)
        && replace(&range)
    {
        if !entry.poisoned.swap(true, Ordering::AcqRel) {
            POISONED.fetch_add(1, Ordering::AcqRel);
        }
        return;
    }
    // SAFETY: signal(2) and raise(3) are async-signal-safe. A failed access is repeated and ends
    // the process; a signal that was sent is raised again, and delivered when this returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if sent {
            libc::raise(signal);
        }
    }
}

/// Puts zeroes in place of a whole mapping: one fault for each, however large it is. Accesses of
/// the kernel that are under way keep the pages they have.
fn replace(range: &Range<usize>) -> bool {
    // SAFETY: the address of this thread's errno, which the interrupted code may be about to read.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. The range is a mapping of ours that stays registered, and so mapped, while
    // somebody accesses it; its memory may change at any time anyway.
    unsafe {
        let saved = *errno;
        let mapped = libc::mmap(
            std::ptr::with_exposed_provenance_mut(range.start),
            range.end - range.start,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        );
        *errno = saved;
        mapped != libc::MAP_FAILED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Mapping;
    use std::os::fd::AsFd;

    const BYTES: u64 = 1 << 20;

    fn truncated() -> (std::fs::File, std::sync::Arc<Mapping>) {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = std::fs::File::from(rustix::fs::memfd_create("test", flags).unwrap());
        file.set_len(BYTES).unwrap();
        let mapping = Mapping::of_file(file.as_fd(), 0, BYTES).unwrap();
        (file, mapping)
    }

    #[test]
    fn a_mapping_that_loses_its_pages_reads_zeroes_and_says_so() {
        let (file, lost) = truncated();
        let (_other, kept) = truncated();
        let area = lost.area(0, 1 << 20).unwrap();
        area.store_u64(8, 7, Ordering::Relaxed);
        file.set_len(0).unwrap();
        assert!(!lost.is_poisoned(), "nobody has touched it");
        assert_eq!(area.load_u64(8, Ordering::Relaxed), 0);
        assert!(lost.is_poisoned());
        area.store_u8((1 << 20) - 1, 9, Ordering::Relaxed);
        assert_eq!(area.load_u8((1 << 20) - 1, Ordering::Relaxed), 9);
        assert!(!kept.is_poisoned());
        drop((area, lost));
        let (_file, fresh) = truncated();
        assert!(!fresh.is_poisoned(), "an entry that is used again is clean");
    }

    #[test]
    fn what_is_unmapped_is_not_registered() {
        // Another test may be given the same place at once, but not again and again.
        let is_gone = |_| {
            let (_file, mapping) = truncated();
            let place = mapping.pointer().as_ptr().addr();
            assert!(find(place).is_some());
            drop(mapping);
            find(place).is_none()
        };
        assert!((0..1000).any(is_gone));
    }

    #[test]
    fn many_threads_at_once() {
        for _ in 0..20 {
            let (file, mapping) = truncated();
            let area = mapping.area(0, 1 << 20).unwrap();
            file.set_len(0).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let area = &area;
                    scope.spawn(move || {
                        for page in 0..64 {
                            area.store_u8(page * 4096 + thread, 1, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert!(mapping.is_poisoned());
        }
    }

    /// How a child ends that does `f`; it must not allocate.
    fn fate(f: impl FnOnce()) -> libc::c_int {
        // SAFETY: the child makes system calls and memory accesses only, then ends.
        unsafe {
            match libc::fork() {
                0 => {
                    let none = libc::rlimit {
                        rlim_cur: 0,
                        rlim_max: 0,
                    };
                    libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                    f();
                    libc::_exit(0)
                }
                child => {
                    let mut status = 0;
                    assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
                    status
                }
            }
        }
    }

    #[test]
    fn elsewhere_it_ends_the_process() {
        let (file, mapping) = truncated();
        let pointer = mapping.pointer().as_ptr();
        file.set_len(0).unwrap();
        // SAFETY: the mapping is mapped, in the child as well.
        let touch = || unsafe {
            pointer.read_volatile();
        };
        assert_eq!(fate(touch), 0, "it is registered");
        let unregister = || mapping.guard().0.end.store(0, Ordering::Release);
        let status = fate(|| {
            unregister();
            touch();
        });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS);
        // SAFETY: sends a signal to itself.
        let sent = fate(|| unsafe {
            libc::raise(libc::SIGBUS);
        });
        assert!(libc::WIFSIGNALED(sent) && libc::WTERMSIG(sent) == libc::SIGBUS);
    }
}
