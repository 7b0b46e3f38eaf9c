//! How a quota becomes longer by what is written beyond its end ([`block::Grow`]): its child does, as long
//! as the limit allows what that takes.

use block::driver::park;
use block::{BlockError, Grow, Io, IoFuture, Result};

use super::reservation::{Reserved, Wanted};
use super::{Quota, check_length, touched};

impl Grow for Quota {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        IoFuture::new(self.growing(io))
    }
}

impl Quota {
    /// Zeroes beyond the end are written, not made by holes. All of the range counts, also what lies inside and
    /// might be unmapped.
    async fn growing(&self, io: Io<'_>) -> Result<()> {
        // The child may write whole blocks of its own, and be as long as that.
        let limits = self.file.limits();
        let block = u64::from(limits.request_alignment);
        let first = (io.offset + limits.origin) & !(block - 1);
        let end = (io.offset + limits.origin + io.bytes).next_multiple_of(block);
        let range = first.saturating_sub(limits.origin)..end - limits.origin;
        check_length(range.end).map_err(|text| {
            BlockError::new(libc::EFBIG, text).doing(io.op.name()).at(
                &self.books.node_name,
                io.offset,
                io.bytes,
            )
        })?;
        let mut reserved = Reserved::new(&self.books, Wanted::write(touched(&range)));
        let end = range.end;
        let mut longer = Longer {
            quota: self,
            before: self.file.length(),
            is_known: false,
        };
        let is_appended = io.offset <= longer.before;
        let result = reserved.submit(&self.file, io).await;
        let length = self.file.length();
        // What lies between the former end and this write, or behind it, is a hole, others are writing it, or
        // it was there already: a device that was extended. The child knows.
        longer.is_known = is_appended && length <= end
            || length <= longer.before
            || park::never(self.note_allocated(longer.before))
                .await
                .is_ok();
        drop(longer);
        reserved.end(result.is_ok(), false);
        result
    }
}

/// A child that gets longer. Unless it is known what it has beyond its former end, all of that counts.
struct Longer<'a> {
    quota: &'a Quota,
    before: u64,
    is_known: bool,
}

impl Drop for Longer<'_> {
    fn drop(&mut self) {
        let length = self.quota.file.length();
        if !self.is_known && !park::is_taken_back() && self.before < length {
            let all = touched(&(self.before..length));
            self.quota.account().note_allocated(all);
        }
    }
}
