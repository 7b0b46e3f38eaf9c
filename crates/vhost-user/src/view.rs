//! Guest memory as a queue sees it: the regions of one memory table, resolved once, because every
//! request looks at them several times.
//!
//! The client may write to all of it at any time, so everything here is an atomic access.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::buffer::Buffer;
use crate::chain::{GuestBytes, Units, words};
use crate::memory::{Memory, NotMapped};

/// Guest addresses that are mapped one after the other.
#[derive(Debug)]
struct Span {
    first: u64,
    bytes: u64,
    host: NonNull<u8>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct View {
    /// Ascending, as in the table.
    spans: Vec<Span>,
    /// Keeps it all mapped.
    memory: Arc<Memory>,
}

impl View {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        let spans = (memory.table().iter())
            .filter_map(|region| {
                Some(Span {
                    first: region.start_addr().0,
                    bytes: region.len(),
                    host: NonNull::new(region.as_ptr())?,
                })
            })
            .collect();
        Self { spans, memory }
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Where `address` is mapped, and how many bytes from there on are.
    #[inline]
    fn find(&self, address: u64) -> Option<(NonNull<u8>, u64)> {
        // Few regions: QEMU has two.
        self.spans.iter().find_map(|span| {
            let offset = address.wrapping_sub(span.first);
            if offset >= span.bytes {
                return None;
            }
            let place = usize::try_from(offset).ok()?;
            // SAFETY: the offset lies inside the region, whose bytes are mapped at `host`.
            Some((unsafe { span.host.add(place) }, span.bytes - offset))
        })
    }

    #[inline]
    fn byte(&self, address: u64) -> Option<&AtomicU8> {
        let (pointer, _) = self.find(address)?;
        // SAFETY: the byte is mapped as long as `self` is there, and all accesses of this process
        // are atomic, those of the kernel are not the language's.
        Some(unsafe { AtomicU8::from_ptr(pointer.as_ptr()) })
    }

    /// Appends the host addresses of a buffer; more than one if it crosses from one region into the
    /// next.
    #[inline]
    pub(crate) fn translate(
        &self,
        buffer: Buffer,
        iov: &mut Vec<libc::iovec>,
    ) -> Result<(), NotMapped> {
        match self.find(buffer.address) {
            Some((pointer, mapped)) if mapped >= u64::from(buffer.len) => {
                iov.push(piece(pointer, buffer.len as usize));
                Ok(())
            }
            _ => self.translate_pieces(buffer, iov),
        }
    }

    #[cold]
    fn translate_pieces(
        &self,
        buffer: Buffer,
        iov: &mut Vec<libc::iovec>,
    ) -> Result<(), NotMapped> {
        let (mut address, mut left) = (buffer.address, buffer.len as usize);
        while left > 0 {
            let (pointer, mapped) = self.find(address).ok_or(NotMapped)?;
            let here = usize::try_from(mapped).map_or(left, |mapped| mapped.min(left));
            iov.push(piece(pointer, here));
            left -= here;
            address = address.checked_add(here as u64).ok_or(NotMapped)?;
        }
        Ok(())
    }

    /// 16 bytes that are not aligned, or that cross from one region into the next.
    #[cold]
    fn load_bytes(&self, address: u64) -> Option<[u64; 2]> {
        let mut bytes = [0; 16];
        for (offset, out) in (0..).zip(&mut bytes) {
            *out = self.load_byte(address.checked_add(offset)?)?;
        }
        Some(words(bytes))
    }

    /// Stores a byte.
    ///
    /// # Errors
    /// If it is not in guest memory.
    #[inline]
    pub fn store(&self, address: u64, value: u8) -> Result<(), NotMapped> {
        let byte = self.byte(address).ok_or(NotMapped)?;
        byte.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Stores bytes, which may cross from one region into the next.
    ///
    /// # Errors
    /// If they are not all in guest memory; those before the first that is not have been stored.
    pub fn store_all(&self, address: u64, values: &[u8]) -> Result<(), NotMapped> {
        (0..).zip(values).try_for_each(|(offset, &value)| {
            self.store(address.checked_add(offset).ok_or(NotMapped)?, value)
        })
    }
}

fn piece(pointer: NonNull<u8>, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: pointer.as_ptr().cast(),
        iov_len: len,
    }
}

/// 16 bytes of guest memory.
type Unit = [AtomicU64; 2];

fn load_unit(unit: &Unit) -> [u64; 2] {
    let [first, second] = unit;
    [first, second].map(|word| u64::from_le(word.load(Ordering::Relaxed)))
}

impl Units for &[Unit] {
    #[inline]
    fn load(&self, index: u16) -> Option<[u64; 2]> {
        self.get(usize::from(index)).map(load_unit)
    }
}

impl GuestBytes for View {
    type Units<'a> = &'a [Unit];

    /// None if they are not aligned, else as many as are in one region.
    #[inline]
    fn units(&self, address: u64, count: u32) -> &[Unit] {
        let Some((pointer, mapped)) = self.find(address) else {
            return &[];
        };
        let pointer: NonNull<Unit> = pointer.cast();
        let count = usize::try_from(mapped / 16).map_or(0, |mapped| mapped.min(count as usize));
        if !pointer.is_aligned() {
            return &[];
        }
        // SAFETY: `count` units are mapped from here on as long as `self` is there, in one region,
        // aligned, and accessed atomically only (see `byte`).
        unsafe { std::slice::from_raw_parts(pointer.as_ptr(), count) }
    }

    #[inline]
    fn load(&self, address: u64) -> Option<[u64; 2]> {
        match self.find(address) {
            Some((pointer, mapped)) if mapped >= 16 && pointer.cast::<Unit>().is_aligned() => {
                // SAFETY: as for `units`.
                Some(load_unit(unsafe { pointer.cast::<Unit>().as_ref() }))
            }
            _ => self.load_bytes(address),
        }
    }

    fn load_byte(&self, address: u64) -> Option<u8> {
        Some(self.byte(address)?.load(Ordering::Relaxed))
    }

    fn is_mapped(&self, address: u64) -> bool {
        self.find(address).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RegionSpec;
    use crate::shared::sealed_memfd;
    use std::fs::File;
    use vm_memory::{Bytes, GuestAddress};

    /// Two regions that adjoin and, behind a hole, a third; each byte is the lowest of its address.
    fn view() -> View {
        let regions = [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)];
        let memory = Memory::new(regions.map(|(guest_address, bytes)| {
            let spec = RegionSpec {
                guest_address,
                bytes,
                user_address: guest_address,
                file_offset: 0,
            };
            (spec, File::from(sealed_memfd("test", bytes).unwrap()))
        }));
        let memory = Arc::new(memory.unwrap());
        let bytes: Vec<u8> = (0..0x1000u32).map(|n| n.to_le_bytes()[0]).collect();
        for (at, _) in regions {
            memory
                .table()
                .write_slice(&bytes, GuestAddress(at))
                .unwrap();
        }
        View::new(memory)
    }

    #[test]
    fn loads_at_every_alignment_and_across_regions() {
        let view = view();
        for address in (0x1ff0 - 20..0x2020).chain(0x8000..0x8010).chain([0x8ff0]) {
            let expected: Vec<u8> = (address..address + 16)
                .map(|at: u64| at.to_le_bytes()[0])
                .collect();
            let found = view.load(address).unwrap().map(u64::to_le_bytes);
            assert_eq!(found.as_flattened(), expected);
        }
        for address in [0, 0xfff, 0x2ff1, 0x7fff, 0x8ff1, u64::MAX - 3, u64::MAX] {
            assert_eq!(view.load(address), None, "{address:#x}");
        }
        assert!(view.is_mapped(0x2fff) && !view.is_mapped(0x3000));
    }

    #[test]
    fn stores_and_translations_stay_inside() {
        let view = view();
        view.store_all(0x1ffe, &[1, 2, 3, 4]).unwrap();
        let found = view.load(0x1ffe).unwrap()[0].to_le_bytes();
        assert_eq!(found[..4], [1, 2, 3, 4]);
        assert_eq!(view.store_all(0x2ffe, &[0; 3]), Err(NotMapped));
        assert_eq!(view.store(u64::MAX, 0), Err(NotMapped));
        let mut iov = Vec::new();
        let buffer = |address, len| Buffer { address, len };
        view.translate(buffer(0x1f00, 0x1100), &mut iov).unwrap();
        let lengths: Vec<_> = iov.iter().map(|one| one.iov_len).collect();
        assert_eq!(lengths, [0x100, 0x1000]);
        for hostile in [buffer(0x2f00, 0x101), buffer(0xfff, 2), buffer(u64::MAX, 2)] {
            assert_eq!(view.translate(hostile, &mut Vec::new()), Err(NotMapped));
        }
    }
}
