//! The write cache that a guest believes in, over resets, reconnects and other daemons.
//!
//! It was forgotten by each of them: the option counted again. QEMU reads the byte once, when the
//! device is made, and shows its copy to the guest from then on. A guest that had switched to
//! write-through sent no flush any more and got no durable write either.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use common::*;
use frontend::protocol::feature::{CONFIG_WCE, FLUSH};
use frontend::protocol::{STATUS_OK, message};
use frontend::{Connection, Disk, DiskState, Options};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What comes last in a region of ours, in bytes.
const TRAILER_BYTES: usize = 64;
/// Where the write cache is in there.
const TRAILER_WRITE_CACHE: usize = 14;

/// As QEMU, which does not read the byte again when it reconnects.
fn qemu() -> Options {
    Options {
        config_again: false,
        ..Options::default()
    }
}

fn without_region() -> Options {
    Options {
        inflight: false,
        ..qemu()
    }
}

/// Whether a write is made durable before it completes.
fn is_durable(daemon: &Daemon, disk: &mut Disk) -> bool {
    let fua = || daemon.faults.fua.load(Ordering::SeqCst);
    let before = fua();
    assert_eq!(write(disk, 0, 1, 4096), STATUS_OK);
    fua() - before == 1
}

fn shown(disk: &mut Disk) -> u8 {
    disk.refresh_config().unwrap().wce
}

/// What the region says: 0 unknown, 1 write-back, 2 write-through.
fn recorded(disk: &Disk) -> u8 {
    let mapping = disk.inflight().unwrap().mapping();
    let mut byte = [0];
    mapping.read(
        mapping.len() - TRAILER_BYTES + TRAILER_WRITE_CACHE,
        &mut byte,
    );
    byte[0]
}

/// The daemon is replaced by one that knows nothing.
fn replace(daemon: Daemon) -> Daemon {
    daemon.wait_disconnected();
    let faults = Arc::clone(&daemon.faults);
    daemon.close();
    Daemon::over(writable(), faults).unwrap()
}

fn reconnect(state: DiskState, daemon: &Daemon) -> Disk {
    let again = Disk::reconnect(state, &daemon.socket);
    again.map_err(|(error, _)| error).unwrap()
}

/// The region is one of a daemon that recorded nothing.
fn make_old(state: &DiskState) {
    let mapping = state.inflight().unwrap().mapping();
    mapping.write(mapping.len() - TRAILER_BYTES, &[0; TRAILER_BYTES]);
}

#[test]
fn a_reset_keeps_it() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(qemu());
    assert!(!is_durable(&daemon, &mut disk));
    for (on, durable) in [(false, true), (true, false), (false, true)] {
        disk.set_write_cache(on).unwrap();
        assert_eq!(is_durable(&daemon, &mut disk), durable);
        disk.reset().unwrap();
        assert_eq!(is_durable(&daemon, &mut disk), durable);
        assert_eq!(recorded(&disk), if durable { 2 } else { 1 });
        disk.stop().unwrap();
        disk.start().unwrap();
        assert_eq!(is_durable(&daemon, &mut disk), durable);
        assert_eq!(shown(&mut disk), u8::from(on));
    }
    expect_clean(&disk);
}

/// With and without a region: the daemon itself remembers.
#[test]
fn a_reconnect_keeps_it() {
    for options in [qemu(), without_region()] {
        let daemon = Daemon::new();
        let mut disk = daemon.connect_with(options);
        for (on, durable) in [(true, false), (false, true), (true, false)] {
            disk.set_write_cache(on).unwrap();
            disk = reconnect(disk.disconnect(), &daemon);
            assert_eq!(is_durable(&daemon, &mut disk), durable);
        }
        disk.set_write_cache(false).unwrap();
        drop(disk);
        // Another VM is told the same, and believes it.
        let mut disk = daemon.connect();
        assert_eq!(disk.config().wce, 0);
        assert!(is_durable(&daemon, &mut disk));
        expect_clean(&disk);
    }
}

#[test]
fn another_daemon_finds_it_in_the_region() {
    let mut daemon = Daemon::new();
    let mut disk = daemon.connect_with(qemu());
    assert_eq!(recorded(&disk), 1, "it was told so, and has started a ring");
    for (on, durable) in [(true, false), (false, true), (true, false), (false, true)] {
        disk.set_write_cache(on).unwrap();
        let state = disk.disconnect();
        daemon = replace(daemon);
        disk = reconnect(state, &daemon);
        assert_eq!(is_durable(&daemon, &mut disk), durable);
        assert_eq!(shown(&mut disk), u8::from(on));
        // As often as one likes.
        let state = disk.disconnect();
        daemon = replace(daemon);
        disk = reconnect(state, &daemon);
        assert_eq!(is_durable(&daemon, &mut disk), durable);
    }
    // The guest is reset, which makes a new region, and the daemon replaced again.
    disk.reset().unwrap();
    let state = disk.disconnect();
    daemon = replace(daemon);
    disk = reconnect(state, &daemon);
    assert!(is_durable(&daemon, &mut disk));
    expect_clean(&disk);
}

/// It is there when SET_CONFIG is answered, not some time later.
#[test]
fn the_record_comes_before_the_answer() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(qemu());
    for on in [false, true].into_iter().cycle().take(100) {
        disk.set_write_cache(on).unwrap();
        assert_eq!(recorded(&disk), if on { 1 } else { 2 });
    }
}

/// A VM that an older daemon has served, or one without region, after a restart without state: it may
/// believe either.
#[test]
fn if_nobody_remembers_every_write_is_durable() {
    for options in [qemu(), without_region()] {
        let old = options.inflight;
        let daemon = Daemon::new();
        let mut disk = daemon.connect_with(options);
        assert!(!is_durable(&daemon, &mut disk));
        let state = disk.disconnect();
        if old {
            make_old(&state);
        }
        let daemon = replace(daemon);
        let mut disk = reconnect(state, &daemon);
        assert!(is_durable(&daemon, &mut disk));
        // QEMU reads the space at a resize, and looks at the capacity only.
        assert_eq!(shown(&mut disk), 0);
        disk.stop().unwrap();
        disk.start().unwrap();
        assert!(is_durable(&daemon, &mut disk));
        disk = reconnect(disk.disconnect(), &daemon);
        assert!(is_durable(&daemon, &mut disk));
        disk.reset().unwrap();
        assert!(is_durable(&daemon, &mut disk));
        // Until the guest says what it wants.
        disk.set_write_cache(true).unwrap();
        assert!(!is_durable(&daemon, &mut disk));
        drop(disk);
        assert!(!is_durable(&daemon, &mut daemon.connect()));
    }
}

/// A VMM that reads the byte whenever it connects believes what it reads.
#[test]
fn who_reads_before_the_first_ring_knows() {
    let daemon = Daemon::new();
    let disk = daemon.connect();
    let state = disk.disconnect();
    make_old(&state);
    let daemon = replace(daemon);
    let mut disk = reconnect(state, &daemon);
    assert_eq!(disk.config().wce, 1);
    assert!(!is_durable(&daemon, &mut disk));
    drop(disk);
    // Somebody who only looks leaves nothing behind.
    let state = daemon.connect_with(qemu()).disconnect();
    make_old(&state);
    let daemon = replace(daemon);
    let mut looks = Connection::connect(&daemon.socket, SECONDS).unwrap();
    let question = [0, 60, 0].map(u32::to_ne_bytes).concat();
    looks.get(message::GET_CONFIG, &question).unwrap();
    drop(looks);
    assert!(is_durable(&daemon, &mut reconnect(state, &daemon)));
}

/// The safe one of two records counts.
#[test]
fn records_that_differ() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(qemu());
    disk.stop().unwrap();
    let mapping = Arc::clone(disk.inflight().unwrap().mapping());
    let place = mapping.len() - TRAILER_BYTES + TRAILER_WRITE_CACHE;
    for (region, durable) in [(0, false), (1, false), (2, true), (1, true), (0, true)] {
        mapping.write(place, &[region]);
        disk.start().unwrap();
        assert_eq!(is_durable(&daemon, &mut disk), durable, "{region}");
        assert_eq!(recorded(&disk), if durable { 2 } else { 1 });
        // What is written there later is nobody's business.
        mapping.write(place, &[if durable { 1 } else { 2 }]);
        assert_eq!(is_durable(&daemon, &mut disk), durable);
        disk.stop().unwrap();
    }
}

/// Firmware without FLUSH, then a system that looks at the byte: for one the writes are durable, for
/// the other it is as it was.
#[test]
fn drivers_of_different_kinds() {
    let firmware = || Options {
        features_mask: !(FLUSH | CONFIG_WCE),
        ..qemu()
    };
    for on in [true, false] {
        let daemon = Daemon::new();
        assert!(is_durable(&daemon, &mut daemon.connect_with(firmware())));
        let mut disk = daemon.connect_with(qemu());
        disk.set_write_cache(on).unwrap();
        assert_eq!(is_durable(&daemon, &mut disk), !on);
        drop(disk);
        assert!(is_durable(&daemon, &mut daemon.connect_with(firmware())));
        // This one flushes, and does not see the byte.
        let mut disk = daemon.connect_with(Options {
            features_mask: !CONFIG_WCE,
            ..qemu()
        });
        assert!(!is_durable(&daemon, &mut disk));
        drop(disk);
        // This one cannot flush, whatever the byte is.
        let mut disk = daemon.connect_with(Options {
            features_mask: !FLUSH,
            ..qemu()
        });
        assert!(is_durable(&daemon, &mut disk));
        drop(disk);
        let mut disk = daemon.connect_with(qemu());
        assert_eq!(disk.config().wce, u8::from(on));
        assert_eq!(is_durable(&daemon, &mut disk), !on);
        expect_clean(&disk);
    }
}

/// A guest that wrote 2 into the byte was disconnected, and so was one that wrote to what is
/// read-only: its VMM passes it on.
#[test]
fn anything_can_be_written() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(qemu());
    let before = disk.config();
    for (byte, durable) in [(0, true), (2, false), (0, true), (0xff, false)] {
        disk.set_config(32, &[byte]).unwrap();
        assert_eq!(is_durable(&daemon, &mut disk), durable, "{byte}");
        assert_eq!(shown(&mut disk), u8::from(byte != 0));
    }
    for (offset, len, durable) in [
        (0, 8, false),
        (33, 4, false),
        (32, 4, true),
        (31, 1, true),
        (300, 1, true),
        (u32::MAX, 8, true),
    ] {
        disk.set_config(offset, &vec![0; len]).unwrap();
        assert_eq!(is_durable(&daemon, &mut disk), durable, "{len} at {offset}");
    }
    // All of it at once, as a VMM that restores a VM does.
    disk.set_config(0, &[1; 60]).unwrap();
    assert!(!is_durable(&daemon, &mut disk));
    assert_eq!(disk.refresh_config().unwrap(), before);
    assert_eq!(daemon.export.trouble(), None);
    expect_clean(&disk);
}

#[test]
fn the_option_is_what_a_guest_is_told_first() {
    let options = standfast_export_vhost_user_blk::Options {
        writethrough: true,
        ..writable()
    };
    let daemon = Daemon::with(options.clone());
    let mut disk = daemon.connect_with(qemu());
    assert_eq!(disk.config().wce, 0);
    assert!(is_durable(&daemon, &mut disk));
    disk.set_write_cache(true).unwrap();
    assert!(!is_durable(&daemon, &mut disk));
    // What the guest has chosen counts more than the option, for another daemon, too.
    let state = disk.disconnect();
    daemon.wait_disconnected();
    let faults = Arc::clone(&daemon.faults);
    daemon.close();
    let daemon = Daemon::over(options, faults).unwrap();
    let mut disk = reconnect(state, &daemon);
    assert!(!is_durable(&daemon, &mut disk));
    disk.reset().unwrap();
    assert!(!is_durable(&daemon, &mut disk));
    expect_clean(&disk);
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
