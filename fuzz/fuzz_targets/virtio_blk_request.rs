//! Requests from a guest that writes what it likes into its memory.
//!
//! The input is [`PREFIX_BYTES`] that choose the device and the head index, then the content of
//! guest memory from address 0: the descriptor table is there, and what it points to, if it points
//! anywhere. The memory has two regions that adjoin and, behind a hole, a third.
#![no_main]

use block::Operation;
use export_vhost_user_blk::request::{
    BUFFERS_MAX, Buffer, DISCARD_SECTORS_MAX, Parsed, Rules, SECTOR_BYTES, TRANSFER_BYTES_MAX,
    Table, Taken, WRITE_ZEROES_SECTORS_MAX, parse,
};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Bit 0: writable; bit 1: indirect descriptors; bits 2 to 5: block size, 512 bytes times a power
/// of two. Then the queue size as a power of two, then the head index, little endian.
const PREFIX_BYTES: usize = 4;
const REGIONS: [(u64, usize); 3] = [(0, 0x2000), (0x2000, 0x1000), (0x8000, 0x1000)];
/// What the input fills: the regions that adjoin. The third stays zero.
const FILLED_BYTES: usize = 0x3000;

thread_local! {
    static MEMORY: GuestMemoryMmap = {
        let regions = REGIONS.map(|(address, bytes)| (GuestAddress(address), bytes));
        GuestMemoryMmap::from_ranges(&regions).expect("there is memory")
    };
    /// As on the data plane: kept, with whatever the last request left in it.
    static TAKEN: RefCell<Taken> = RefCell::default();
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[flags, size, head0, head1], content)) = bytes.split_first_chunk::<PREFIX_BYTES>()
    else {
        return;
    };
    let rules = Rules {
        writable: flags & 1 != 0,
        block_bytes: 512 << ((flags >> 2) % 13),
    };
    let table = Table {
        address: 0,
        size: 1 << (size % 16),
        indirect: flags & 2 != 0,
    };
    let head = u16::from_le_bytes([head0, head1]);
    let mut filled = [0; FILLED_BYTES];
    let len = content.len().min(FILLED_BYTES);
    filled[..len].copy_from_slice(&content[..len]);
    MEMORY.with(|memory| {
        memory
            .write_slice(&filled, GuestAddress(0))
            .expect("it is mapped");
        let mut fresh = Taken::default();
        let result = parse(memory, table, head, rules, &mut fresh);
        TAKEN.with_borrow_mut(|used| {
            assert_eq!(parse(memory, table, head, rules, used), result);
            if let Ok(parsed) = result {
                check_taken(memory, used);
                check_parsed(parsed, rules, used);
                assert_eq!(
                    used.readable(),
                    fresh.readable(),
                    "it depends on the last request"
                );
                assert_eq!(
                    used.writable(),
                    fresh.writable(),
                    "it depends on the last request"
                );
            }
        });
    });
});

fn check_taken(memory: &GuestMemoryMmap, taken: &Taken) {
    // Cutting off header and status makes buffers fewer or shorter, never more.
    assert!(taken.readable().len() + taken.writable().len() <= BUFFERS_MAX);
    assert!(
        memory.check_range(GuestAddress(taken.status_address), 1, Permissions::Write),
        "no status byte: {taken:?}"
    );
    let writable = total(taken.writable()) + 1;
    assert_eq!(
        u64::from(taken.written),
        writable.min(u32::MAX.into()),
        "{taken:?}"
    );
}

fn check_parsed(parsed: Parsed, rules: Rules, taken: &Taken) {
    if !matches!(parsed, Parsed::Answer { .. }) {
        // A refused request may leave anything behind: its buffers are not used.
        let mut buffers = taken.readable().iter().chain(taken.writable());
        assert!(buffers.all(|buffer| buffer.len > 0), "{taken:?}");
    }
    let Parsed::Submit { op, offset, bytes } = parsed else {
        return;
    };
    let block_bytes = u64::from(rules.block_bytes);
    assert!(
        offset.is_multiple_of(block_bytes) && bytes.is_multiple_of(block_bytes),
        "{parsed:?}"
    );
    assert!(
        rules.writable || matches!(op, Operation::Read | Operation::Flush),
        "{parsed:?}"
    );
    assert_eq!(bytes == 0, op == Operation::Flush, "{parsed:?}");
    assert!(bytes <= TRANSFER_BYTES_MAX, "{parsed:?}");
    match op {
        Operation::Read => assert_eq!(total(taken.writable()), bytes),
        Operation::Write => assert_eq!(total(taken.readable()), bytes),
        Operation::Discard => assert!(bytes <= u64::from(DISCARD_SECTORS_MAX) * SECTOR_BYTES),
        Operation::WriteZeroes { .. } => {
            assert!(bytes <= u64::from(WRITE_ZEROES_SECTORS_MAX) * SECTOR_BYTES);
        }
        Operation::Flush => {}
    }
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}
