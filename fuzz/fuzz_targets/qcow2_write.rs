//! A whole image that anybody may have made, written by the driver: whatever its tables say, nothing panics, hangs or is written
//! where no image of its size has anything, and one that was sound stays so.
//!
//! The last bytes of the input are the requests, the others the image.
#![no_main]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block::{Attachment, Io, Node, OwnedBuffer};
use drivers::{NullCo, NullOptions};
use libfuzzer_sys::fuzz_target;
use qcow2::check::{Limits, Report, check};
use qcow2::{CacheSizes, Image, Qcow2, Qcow2Options};
use sweep::{Memory, allow_all};

/// Bytes of one request.
const REQUEST: usize = 4;
/// Most requests.
const REQUESTS: usize = 8;
/// The longest request, in bytes.
const LONGEST: u64 = 128 << 10;
/// So much longer an image may become by them, whatever its clusters are.
const MORE: usize = 64 << 20;
/// So often a request is polled whose storage answers at once.
const POLLS: usize = 10_000;

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.len().saturating_sub(REQUEST * REQUESTS);
    let (image, requests) = bytes.split_at(at);
    // Tables that are not there are not to be made by the harness.
    let Some(before) = checked(image) else {
        return;
    };
    let storage = Memory::new(image).bounded(image.len() + MORE);
    let node = Node::new("file0", Box::new(storage.clone()));
    let opened = pollster::block_on(Qcow2::open(Qcow2Options {
        caches: CacheSizes {
            l2: Some(512),
            l2_entry: Some(512),
            ..CacheSizes::default()
        },
        data_file: data_file(image),
        discard: true,
        ..Qcow2Options::new("disk0", node)
    }));
    let Ok(driver) = opened else {
        return;
    };
    let disk = Node::new("disk0", Box::new(driver));
    allow_all(&disk);
    let attached = Attachment::new(&disk);
    for request in requests.chunks_exact(REQUEST) {
        perform(&disk, request);
    }
    now(disk.write_back());
    drop(attached);
    drop(disk);
    let after = storage.content();
    let after = checked(&after).expect("its header is one");
    if before.corruptions + before.errors == 0 {
        assert_eq!(after.corruptions + after.errors, 0, "{:?}", after.findings);
    }
});

/// Where the data of an image are that has them elsewhere: the disk may be longer than there is memory.
fn data_file(image: &[u8]) -> Option<Arc<Node>> {
    let image = Image::open(&image).ok()?;
    let null = NullCo::new(NullOptions {
        size: Some(1 << 41),
        read_zeroes: Some(true),
        ..NullOptions::default()
    });
    let has_data = image.header.features.has_external_data();
    has_data.then(|| Node::new("data0", Box::new(null)))
}

fn checked(image: &[u8]) -> Option<Report> {
    let limits = Limits {
        memory: 64 << 20,
        findings: 4,
    };
    let image = Image::open(&image).ok()?;
    // What of a longer disk could be met is met in a shorter one.
    (image.header.size <= 1 << 40).then(|| check(&image, &limits))
}

/// One request, of which four bytes say what and where.
fn perform(disk: &Arc<Node>, request: &[u8]) {
    let &[what, place, more, length] = request else {
        return;
    };
    let end = disk.driver().length();
    // Near the beginning, or anywhere.
    let at = match what & 1 {
        0 => u64::from(place) << 9 | u64::from(more),
        _ => (end / 256).saturating_mul(u64::from(place)) + u64::from(more),
    };
    let at = at.min(end);
    let bytes = (u64::from(length) << (what >> 4))
        .min(LONGEST)
        .min(end - at);
    let data = OwnedBuffer::zeroed(usize::try_from(bytes).expect("small"));
    let mut data = data.expect("memory");
    data.fill(what | 1);
    let ended = match what >> 1 & 7 {
        0..=2 => now(disk.submit(Io::write(at, data.lend()))),
        3 => now(disk.submit(Io::write_zeroes(at, bytes, more & 1 == 0))),
        4 => now(disk.submit(Io::discard(at, bytes))),
        5 => now(disk.submit(Io::read(at, data.lend()))),
        6 => now(disk.submit(Io::flush())),
        _ => {
            let length = (end / 2 + (at << 3)).min(end + (16 << 20)) >> 9 << 9;
            let _ = disk.resize(length);
            Ok(())
        }
    };
    if let Err(error) = ended {
        assert!(!error.to_string().is_empty());
    }
}

/// What waits for nothing but storage that answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..POLLS {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
    panic!("it hangs");
}
