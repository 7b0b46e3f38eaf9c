//! The redo log of a former daemon, which anybody may have damaged: whatever its bytes are, they are a log or none, and of one that is, only what was
//! written counts.
//!
//! The first bytes say where the others are put, over a log with some records.
#![no_main]

use block::Image;
use libfuzzer_sys::fuzz_target;
use qcow2::driver::{RedoChange, RedoHead, RedoRecord, RedoRing, RedoTable};
use qcow2::format::L2Entry;

/// How long a log is.
const BYTES: usize = 1 << 20;
/// How many records there are.
const RECORDS: u64 = 40;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[low, high, whole], rest)) = bytes.split_first_chunk::<3>() else {
        return;
    };
    let at = usize::from(u16::from_le_bytes([low, high])) % 8192;
    let mut content = match whole & 1 {
        0 => vec![0; BYTES],
        _ => written(),
    };
    let end = content.len().min(at + rest.len());
    content[at..end].copy_from_slice(&rest[..end - at]);
    let Some((head, mut ring)) = RedoRing::open(content) else {
        return;
    };
    let live = ring.live();
    for record in &live {
        let changes = record.changes(1 << (head.cluster_bits % 22));
        assert_eq!(changes.count(), record.count() as usize);
    }
    // It goes on from there.
    let room = ring.room();
    for number in 0..2 {
        assert_eq!(ring.push(&record(number)), room > number as usize);
    }
    let (again, ring) = RedoRing::open(ring.storage().clone()).expect("it was one");
    assert_eq!(again, head);
    assert_eq!(ring.live()[..live.len()], live);
});

fn record(number: u64) -> RedoRecord {
    let entry = |descriptor| L2Entry {
        descriptor,
        bitmap: 0,
    };
    RedoRecord::of(&RedoChange {
        which: RedoTable::L2,
        at: number,
        before: entry(0),
        after: entry(number << 16),
    })
}

fn written() -> Vec<u8> {
    let head = RedoHead {
        tag: 7,
        cluster_bits: 16,
        extended: false,
        boot_id: "boot".to_owned(),
        image: Image::new("/a", "1:2:3"),
    };
    let mut ring = RedoRing::new(vec![0; BYTES], &head).expect("it is short");
    for number in 0..RECORDS {
        ring.push(&record(number));
    }
    ring.void_before(11);
    ring.storage().clone()
}
