//! Views of the memory that a request moves: the guest's, or our own.
//!
//! The guest may change its memory at any time, also while we read it. So the bytes are never
//! borrowed as slices: they are copied in, copied out, filled with zeroes, or given to the kernel.
//! What somebody must be sure of (a checksum, a decision) he copies out first, once, and then looks
//! at his copy.
//!
//! # Contract
//!
//! A [`Buffers<'a>`](Buffers) lies in memory that stays mapped for `'a`. A driver gets one with each
//! [`Io`](crate::Io) and may use it until the future of the submission has ended or is dropped. The
//! kernel may be at work in that memory meanwhile: dropping an operation of [`iothread::ops`] waits
//! for it, but an operation that is *leaked* (`mem::forget`, a circle of `Rc`) waits for nobody. As
//! there, futures that have been given buffers must not be leaked.

use std::fmt;
use std::iter;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

use libc::iovec;

/// A view of a list of segments of memory, as a window: it can be split and sliced without copying the
/// list. See the [module](self).
///
/// Positions and lengths are in bytes. What goes beyond the end of a view is a mistake of the caller:
/// it is noticed in a debug build, and left out otherwise.
#[derive(Clone, Copy)]
pub struct Buffers<'a> {
    /// Where the view lies: it begins in the first of them and ends in the last.
    segments: &'a [iovec],
    edges: Edges,
    bytes: usize,
}

/// How a view lies in its segments. One word, so that one comparison finds the usual case, in which
/// it has all of them whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edges(usize);

impl Edges {
    const WHOLE: Self = Self(0);

    /// The view begins `skip` bytes behind the beginning of its first segment; `cut`: it ends before
    /// the end of its last. No memory is longer than `isize::MAX`, so there is a bit to spare.
    fn new(skip: usize, cut: bool) -> Self {
        Self(skip << 1 | usize::from(cut))
    }

    fn skip(self) -> usize {
        self.0 >> 1
    }

    fn is_cut(self) -> bool {
        self.0 & 1 != 0
    }
}

impl Default for Buffers<'_> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<'a> Buffers<'a> {
    /// No memory at all: for requests that move nothing.
    pub const EMPTY: Self = Self {
        segments: &[],
        edges: Edges::WHOLE,
        bytes: 0,
    };

    /// The memory that `segments` describe, `bytes` long altogether.
    ///
    /// # Safety
    ///
    /// For `'a` each segment is mapped, readable and, unless the view is given to writes alone,
    /// writable; and nobody has a reference into it, except one that allows for changes by others
    /// (atomics). Others may read and write the memory at any time: whether they do so in an order is
    /// their concern. `bytes` is the sum of the lengths.
    pub unsafe fn from_iovecs(segments: &'a [iovec], bytes: usize) -> Self {
        debug_assert_eq!(
            segments.iter().map(|one| one.iov_len).sum::<usize>(),
            bytes,
            "the sum of the segments"
        );
        Self {
            segments,
            edges: Edges::WHOLE,
            bytes,
        }
    }

    /// Bytes in view.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing in view.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Number of segments that the view lies in, those without a byte included.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Whether each contiguous piece begins at a multiple of `memory` and is a multiple of `length`
    /// long. Both are powers of two.
    pub fn is_aligned(&self, memory: u32, length: u32) -> bool {
        let (memory, length) = (memory as usize - 1, length as usize - 1);
        let fits = |one: &iovec| one.iov_base.addr() & memory == 0 && one.iov_len & length == 0;
        if self.edges == Edges::WHOLE {
            return self.segments.iter().all(fits);
        }
        self.iovecs().all(|one| fits(&one))
    }

    /// The part of the view at `range`.
    pub fn slice(&self, range: Range<usize>) -> Self {
        debug_assert!(
            range.start <= range.end && range.end <= self.bytes,
            "{range:?} of {} bytes",
            self.bytes
        );
        let end = range.end.min(self.bytes);
        let start = range.start.min(end);
        if start == 0 && end == self.bytes {
            return *self;
        }
        if start == end {
            return Self::EMPTY;
        }
        let mut segments = self.segments;
        let mut skip = self.edges.skip() + start;
        while let [first, rest @ ..] = segments
            && skip >= first.iov_len
        {
            skip -= first.iov_len;
            segments = rest;
        }
        let bytes = end - start;
        let mut cut = self.edges.is_cut();
        if end < self.bytes {
            let mut left = skip + bytes;
            let last = segments.iter().position(|one| {
                let ends_here = left <= one.iov_len;
                if !ends_here {
                    left -= one.iov_len;
                }
                ends_here
            });
            if let Some(last) = last
                && let Some(until) = segments.get(..=last)
            {
                cut = segments.get(last).is_some_and(|one| left < one.iov_len);
                segments = until;
            }
        }
        Self {
            segments,
            edges: Edges::new(skip, cut),
            bytes,
        }
    }

    /// The first `at` bytes, and the others.
    pub fn split_at(&self, at: usize) -> (Self, Self) {
        (self.slice(0..at), self.slice(at..self.bytes))
    }

    /// The bytes from `at` on.
    pub fn after(&self, at: usize) -> Self {
        self.slice(at..self.bytes)
    }

    /// Fills the view with zeroes.
    pub fn fill_zero(&self) {
        for one in self.iovecs() {
            // SAFETY: the piece is mapped and writable, and nobody has a reference into it
            // (`from_iovecs`).
            unsafe { one.iov_base.cast::<u8>().write_bytes(0, one.iov_len) };
        }
    }

    /// Whether all bytes in view are zero: each one as it was when it was looked at, which is once.
    pub fn is_zero(&self) -> bool {
        /// What is not zero is mostly so from its beginning.
        const FIRST: usize = 256;
        const PIECE: usize = 4096;
        let mut piece = [0u8; PIECE];
        let mut left = *self;
        let mut longest = FIRST;
        while !left.is_empty() {
            let (here, rest) = left.split_at(longest.min(left.len()));
            let copied = here.copy_to(&mut piece);
            // All of them: without a way out in between this is vectorised.
            let any = piece[..copied].iter().fold(0, |any, one| any | one);
            if any != 0 {
                return false;
            }
            (left, longest) = (rest, PIECE);
        }
        true
    }

    /// Copies the bytes in view to `to`, as many as both have; returns how many. The memory is read
    /// once: whatever is done with `to` afterwards is done with what was read here.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let mut left = to;
        let mut done = 0;
        for one in self.iovecs() {
            let bytes = one.iov_len.min(left.len());
            let (here, rest) = left.split_at_mut(bytes);
            // SAFETY: the piece is mapped and readable; `here` is as long, and ours alone.
            unsafe { (here.as_mut_ptr()).copy_from(one.iov_base.cast(), bytes) };
            left = rest;
            done += bytes;
        }
        // The compiler may take it that memory to which nobody writes here stays as it is, and read it
        // again in place of the copy. Not across this.
        compiler_fence(Ordering::SeqCst);
        done
    }

    /// Copies `from` to the memory in view, as many bytes as both have; returns how many.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let mut left = from;
        let mut done = 0;
        for one in self.iovecs() {
            let bytes = one.iov_len.min(left.len());
            let (here, rest) = left.split_at(bytes);
            // SAFETY: the piece is mapped and writable, and nobody has a reference into it
            // (`from_iovecs`), so it is not in `here`, which is as long.
            unsafe { (one.iov_base.cast::<u8>()).copy_from(here.as_ptr(), bytes) };
            left = rest;
            done += bytes;
        }
        done
    }

    /// The contiguous pieces of the view, none of them empty. For whoever gives them to the kernel.
    pub fn iovecs(&self) -> impl Iterator<Item = iovec> + use<'a> {
        let mut segments = self.segments.iter();
        let (mut skip, mut left) = (self.edges.skip(), self.bytes);
        iter::from_fn(move || {
            while left > 0 {
                let one = segments.next()?;
                let bytes = one.iov_len.saturating_sub(skip).min(left);
                if bytes == 0 {
                    skip -= one.iov_len.min(skip);
                    continue;
                }
                let base = one.iov_base.wrapping_byte_add(skip);
                skip = 0;
                left -= bytes;
                return Some(iovec {
                    iov_base: base,
                    iov_len: bytes,
                });
            }
            None
        })
    }

    /// The first `max` segments of the view as they lie in their list, or all if there are fewer;
    /// none if the view begins or ends inside one of them, so that they have to be listed anew
    /// ([`Self::iovecs`]).
    pub fn uncut(&self, max: usize) -> Option<&'a [iovec]> {
        let first = self.segments.get(..max);
        if self.edges == Edges::WHOLE {
            return Some(first.unwrap_or(self.segments));
        }
        // So what is cut, if the view begins with one, is the last one.
        let reaches_last = self.segments.len() <= max;
        first.filter(|_| self.edges.skip() == 0 && !reaches_last)
    }
}

impl fmt::Debug for Buffers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers")
            .field("bytes", &self.bytes)
            .field("segments", &self.segments.len())
            .finish_non_exhaustive()
    }
}

/// Buffers one behind the other: an owned list of the segments of what is joined.
///
/// Our own memory can be a part of it as well: it is lent to the list for as long as that lives.
pub struct Joined<'a> {
    segments: Vec<iovec>,
    bytes: usize,
    /// What was joined stays mapped, and what was lent stays lent.
    _memory: PhantomData<(Buffers<'a>, &'a mut [u8])>,
}

impl<'a> Joined<'a> {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            segments: Vec::new(),
            bytes: 0,
            _memory: PhantomData,
        }
    }

    /// Appends a view.
    pub fn push(&mut self, buffers: Buffers<'a>) {
        self.segments.extend(buffers.iovecs());
        self.bytes += buffers.len();
    }

    /// Appends memory of our own.
    pub fn push_own(&mut self, memory: &'a mut [u8]) {
        self.segments.push(iovec {
            iov_base: memory.as_mut_ptr().cast(),
            iov_len: memory.len(),
        });
        self.bytes += memory.len();
    }

    /// All of it.
    pub fn buffers(&self) -> Buffers<'_> {
        // SAFETY: what was pushed as a view keeps the contract for `'a`, and what was lent is
        // borrowed for `'a`; both outlive `self`.
        unsafe { Buffers::from_iovecs(&self.segments, self.bytes) }
    }
}

impl Default for Joined<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.buffers().fmt(f)
    }
}

#[cfg(test)]
mod tests;
