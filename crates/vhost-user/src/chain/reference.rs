//! Chains followed in the plainest way, to compare the walk with: first all descriptors of a table
//! are collected as they name each other, then they are judged in that order.

use super::*;
use crate::memory::{Memory, RegionSpec};
use crate::shared::sealed_memfd;
use crate::view::View;
use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use testkit::Rng;
use vm_memory::Bytes;

pub(crate) type Raw = (u64, u32, u16, u16);
type Found = Result<Vec<(u64, u32, bool)>, ChainError>;

/// As they name each other from `first` on, up to the one that cannot be had.
fn collect(
    memory: &impl GuestBytes,
    base: u64,
    size: u32,
    first: u16,
) -> (Vec<Raw>, Option<ChainError>) {
    let max = BUFFERS_MAX.min(size as usize);
    let (mut found, mut index) = (Vec::new(), first);
    loop {
        if u32::from(index) >= size {
            return (found, Some(ChainError::Index { index, size }));
        }
        if found.len() == max {
            return (found, Some(ChainError::TooLong { max }));
        }
        let Some(address) = base.checked_add(16 * u64::from(index)) else {
            return (found, Some(ChainError::Unreadable { address: base }));
        };
        let bytes: Option<Vec<u8>> = (0..16)
            .map(|at| memory.load_byte(address.checked_add(at)?))
            .collect();
        let Some(bytes) = bytes else {
            return (found, Some(ChainError::Unreadable { address }));
        };
        let raw = (
            u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
            u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
            u16::from_le_bytes(bytes[14..].try_into().unwrap()),
        );
        found.push(raw);
        if raw.2 & FLAG_NEXT == 0 {
            return (found, None);
        }
        index = raw.3;
    }
}

fn judge(
    memory: &impl GuestBytes,
    table: Table,
    (raws, end): (Vec<Raw>, Option<ChainError>),
    inside: bool,
    buffers: &mut Vec<(u64, u32, bool)>,
    writable: &mut bool,
) -> Result<(), ChainError> {
    for (address, len, flags, _) in raws {
        if flags & FLAG_INDIRECT != 0 {
            let alone = flags & FLAG_NEXT == 0;
            if inside || !table.indirect || !alone || len == 0 || len % 16 != 0 {
                return Err(ChainError::Indirect { bytes: len });
            }
            let inner = collect(memory, address, len / 16, 0);
            return judge(memory, table, inner, true, buffers, writable);
        }
        let writes = flags & FLAG_WRITE != 0;
        if *writable && !writes {
            return Err(ChainError::Order);
        }
        *writable = writes;
        if len > 0 {
            buffers.push((address, len, writes));
        }
    }
    end.map_or(Ok(()), Err)
}

fn reference(memory: &impl GuestBytes, table: Table, head: u16) -> Found {
    let mut buffers = Vec::new();
    let outer = collect(memory, table.address, table.size.into(), head);
    judge(memory, table, outer, false, &mut buffers, &mut false)?;
    Ok(buffers)
}

fn walked(memory: &impl GuestBytes, table: Table, head: u16) -> Found {
    let mut buffers = Vec::new();
    walk(memory, table, head, |buffer, writes| {
        buffers.push((buffer.address, buffer.len, writes));
    })?;
    Ok(buffers)
}

/// Memory whose guest overwrites everything as soon as it has been loaded.
pub(crate) struct Fickle<'a>(pub(crate) &'a View);

pub(crate) struct FickleUnits<'a> {
    view: &'a View,
    address: u64,
    units: <View as GuestBytes>::Units<'a>,
}

impl Units for FickleUnits<'_> {
    fn load(&self, index: u16) -> Option<[u64; 2]> {
        let loaded = self.units.load(index)?;
        let address = self.address + 16 * u64::from(index);
        self.view.store_all(address, &[0xff; 16]).unwrap();
        Some(loaded)
    }
}

impl GuestBytes for Fickle<'_> {
    type Units<'a>
        = FickleUnits<'a>
    where
        Self: 'a;

    fn units(&self, address: u64, count: u32) -> FickleUnits<'_> {
        FickleUnits {
            view: self.0,
            address,
            units: self.0.units(address, count),
        }
    }

    fn load(&self, address: u64) -> Option<[u64; 2]> {
        let loaded = self.0.load(address)?;
        self.0.store_all(address, &[0xff; 16]).unwrap();
        Some(loaded)
    }

    fn load_byte(&self, address: u64) -> Option<u8> {
        let loaded = self.0.load_byte(address)?;
        self.0.store(address, !loaded).unwrap();
        Some(loaded)
    }

    fn is_mapped(&self, address: u64) -> bool {
        self.0.is_mapped(address)
    }
}

const REGIONS: [(u64, u64); 3] = [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)];
pub(crate) const MAIN: u64 = 0x1000;
/// Where indirect tables are: aligned; by 8; by nothing; across two regions, and so that one
/// descriptor lies across them; that end with the memory, and go on behind it; in a hole; at the
/// very end of all addresses.
const PLACES: [u64; 9] = [
    0x1100,
    0x1208,
    0x1304,
    0x2000 - 32,
    0x2000 - 24,
    0x3000 - 64,
    0x9000 - 24,
    0x7000,
    u64::MAX - 40,
];

pub(crate) fn view() -> View {
    let memory = Memory::new(REGIONS.map(|(guest_address, bytes)| {
        let spec = RegionSpec {
            guest_address,
            bytes,
            user_address: guest_address,
            file_offset: 0,
        };
        (spec, File::from(sealed_memfd("test", bytes).unwrap()))
    }));
    View::new(Arc::new(memory.unwrap()))
}

pub(crate) fn write(view: &View, at: u64, raws: &[Raw]) {
    for (place, &(address, len, flags, next)) in (0..).zip(raws) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let Some(at) = at.checked_add(place * 16) else {
            return;
        };
        // Some places are not in memory, which is the point.
        let _ = view.memory().table().write_slice(&bytes, GuestAddress(at));
    }
}

/// Mostly one of a chain that goes on with the next descriptor, at times anything.
fn raw(rng: &mut Rng, index: u16, inner: bool) -> Raw {
    let any = |rng: &mut Rng| rng.next_u64().to_le_bytes();
    let next = match rng.below(30) {
        0 => u16::from_le_bytes([any(rng)[0], any(rng)[1]]),
        1 | 2 => u16::try_from(rng.below(9)).unwrap(),
        _ => index + 1,
    };
    let writes = if rng.below(5) < u64::from(index) {
        FLAG_WRITE
    } else {
        0
    };
    let flags = match rng.below(40) {
        0 => u16::from_le_bytes([any(rng)[0], any(rng)[1]]),
        1 => FLAG_INDIRECT | FLAG_NEXT,
        2..10 if !inner => FLAG_INDIRECT,
        2 => FLAG_INDIRECT,
        10..16 => writes,
        16..18 => FLAG_NEXT,
        _ => writes | FLAG_NEXT,
    };
    let len = match rng.below(20) {
        0 => u32::from(any(rng)[0]),
        1 => u32::MAX - u32::from(any(rng)[0]),
        more => u32::try_from(more / 2).unwrap() * 16,
    };
    let place = usize::try_from(rng.below(PLACES.len() as u64)).unwrap();
    (PLACES[place], len, flags, next)
}

#[test]
fn the_walk_is_the_plain_one() {
    let (view, mut rng) = (view(), Rng::new(1));
    let (mut longest, mut faults) = (0, HashSet::new());
    for _ in 0..5000 {
        for (at, inner) in PLACES
            .map(|place| (place, true))
            .into_iter()
            .chain([(MAIN, false)])
        {
            let raws: Vec<_> = (0..8).map(|index| raw(&mut rng, index, inner)).collect();
            write(&view, at, &raws);
        }
        let table = Table {
            address: MAIN,
            size: if rng.below(8) == 0 { 2 } else { 8 },
            indirect: rng.below(8) > 0,
        };
        let head = u16::try_from(rng.below(9)).unwrap();
        let expected = reference(&view, table, head);
        match &expected {
            Ok(buffers) => longest = longest.max(buffers.len()),
            Err(error) => {
                faults.insert(std::mem::discriminant(error));
            }
        }
        assert_eq!(walked(&view, table, head), expected);
        assert_eq!(walked(view.memory().table(), table, head), expected);
        if expected.is_ok() {
            // There is no loop: nothing is loaded twice.
            assert_eq!(walked(&Fickle(&view), table, head), expected);
        }
    }
    assert!(longest >= 5, "{longest}");
    assert_eq!(faults.len(), 5, "every kind of fault: {faults:?}");
}
