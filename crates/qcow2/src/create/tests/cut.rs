//! Wherever the making of an image fails or is cut off, there is what was there before, nothing, or all of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sweep::Fault;
use sweep::disk::{Disk, Survivors};
use sweep::storage::{FlushFailure, Settings, Storage};
use testkit::Rng;

use super::layouts;
use crate::create::{CreateOptions, Layout, Preallocation, make_alone};
use crate::format::header::MAGIC;

const KIB: u64 = 1 << 10;

fn options() -> Vec<CreateOptions> {
    let base = CreateOptions {
        cluster_bytes: 512,
        ..CreateOptions::new(40 * KIB)
    };
    let with = |preallocation| CreateOptions {
        preallocation,
        ..base.clone()
    };
    vec![
        base.clone(),
        with(Preallocation::Metadata),
        with(Preallocation::Falloc),
        with(Preallocation::Full),
        CreateOptions {
            cluster_bytes: 16 << 10,
            extended_l2: true,
            preallocation: Preallocation::Falloc,
            ..CreateOptions::overlay(40 * KIB, &[b'x'; 600], "raw")
        },
    ]
}

/// What may have been in the file: nothing, an image, something else that is longer.
fn files() -> Vec<Vec<u8>> {
    let former = CreateOptions {
        cluster_bytes: 4 << 10,
        ..CreateOptions::new(99 * KIB)
    };
    let former = layouts::image(&Layout::new(&former).unwrap());
    vec![Vec::new(), former, vec![0x55; 60 << 10]]
}

fn is_image(file: &[u8]) -> bool {
    file.starts_with(&MAGIC)
}

/// The image, whatever is behind it; what of it the guest has is zeroes.
fn is_made(file: &[u8], layout: &Layout) -> bool {
    let whole = layouts::image(layout);
    file.len() >= whole.len() && file[..whole.len()] == whole
}

fn made(storage: &Storage, options: &CreateOptions) -> block::Result<()> {
    make_alone(
        &storage.node(),
        None,
        options,
        Arc::new(AtomicBool::new(false)),
    )
}

#[test]
fn cut_off_anywhere() {
    let mut rng = Rng::new(17);
    for before in files() {
        for options in options() {
            let layout = Layout::new(&options).unwrap();
            let storage = Storage::new(before.clone(), Settings::PLAIN, 1);
            made(&storage, &options).unwrap();
            assert!(is_made(&storage.image(), &layout), "{options:?}");
            let log = storage.take_log();
            let mut disk = Disk::new(before.clone(), false);
            let mut seen = [0; 3];
            for (time, event) in log.iter().enumerate() {
                disk.apply(time, event);
                for nth in 0..8 {
                    let survivors = Survivors::choose(nth, disk.unflushed(), &mut rng);
                    let left = disk.cut(survivors);
                    // Its length may have grown.
                    let old = left.get(..before.len()) == Some(&before);
                    let old = old && left[before.len()..].iter().all(|byte| *byte == 0);
                    let kind = match (is_image(&left), old, is_made(&left, &layout)) {
                        (_, _, true) => 2,
                        (_, true, _) => 0,
                        (false, ..) => 1,
                        _ => panic!("{options:?}: cut after event {time}: half an image"),
                    };
                    seen[kind] += 1;
                }
            }
            assert!(seen[0] > 0 && seen[2] > 0, "{seen:?}");
        }
    }
}

/// What fails is an error that names the node; the file is no image, and as long as it was. The length was given back once
/// although the first sector had been written, and only the flush behind it had failed: an image without its tables.
#[test]
fn any_operation_fails() {
    for before in files() {
        for options in options() {
            let layout = Layout::new(&options).unwrap();
            let well = Storage::new(before.clone(), Settings::PLAIN, 1);
            made(&well, &options).unwrap();
            for at in 0..well.operations() {
                for (errno, for_good) in [
                    (libc::EIO, true),
                    (libc::ENOSPC, true),
                    (libc::ENOSPC, false),
                ] {
                    let settings = Settings {
                        flush_failure: FlushFailure::Forgets,
                        ..Settings::PLAIN
                    };
                    let storage = Storage::new(before.clone(), settings, 1);
                    storage.fail(Some(Fault {
                        at,
                        errno,
                        for_good,
                    }));
                    let error = made(&storage, &options);
                    let left = storage.image();
                    let Err(error) = error else {
                        // What the storage knows of its holes is not needed.
                        assert!(is_made(&left, &layout), "operation {at}");
                        continue;
                    };
                    let text = error.to_string();
                    assert!(text.contains("'storage'"), "operation {at}: {text}");
                    let old = left.get(..before.len()) == Some(&before);
                    // The last write may have failed after it had come through.
                    let whole = is_made(&left, &layout);
                    assert!(!is_image(&left) || old || whole, "operation {at}");
                    // Where a flush fails for good the first sector cannot be taken back: then nothing is.
                    let length = before.len().next_multiple_of(sweep::SECTOR);
                    let given_back = left.len() == length || storage.is_latched();
                    assert!(for_good || given_back, "operation {at}");
                }
            }
        }
    }
}
