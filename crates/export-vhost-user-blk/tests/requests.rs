//! Requests of all kinds, over a real socket and a real iothread.

mod common;

use common::*;
use frontend::protocol::{STATUS_IOERR, STATUS_OK, STATUS_UNSUPP};
use frontend::{Request, Segment};
use standfast_export_vhost_user_blk::Options;
use std::sync::atomic::Ordering;

#[test]
fn write_read_flush_zero_discard_and_id() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    assert_eq!(disk.config().capacity, (DISK_BYTES / 512) as u64);
    assert_eq!(write(&mut disk, 8, 0x5a, 8192), STATUS_OK);
    assert_eq!(read(&mut disk, 8, 8192), vec![0x5a; 8192]);
    assert_eq!(read(&mut disk, 24, 512), vec![0; 512]);
    let mut run = |request: Request<'_>| disk.execute(0, request, SECONDS).unwrap();
    assert_eq!(run(Request::Flush).status, STATUS_OK);
    let id = run(Request::GetId);
    assert_eq!(
        (id.status, &id.data[..]),
        (STATUS_OK, &b"vhost_user_blk\0\0\0\0\0\0"[..])
    );
    assert_eq!(
        run(Request::Discard(&[Segment::new(8, 8)])).status,
        STATUS_OK
    );
    assert_eq!(daemon.faults.discards.load(Ordering::SeqCst), 1);
    assert_eq!(
        run(Request::WriteZeroes(&[Segment::new(8, 8).unmap()])).status,
        STATUS_OK
    );
    assert_eq!(
        read(&mut disk, 8, 8192),
        [vec![0; 4096], vec![0x5a; 4096]].concat()
    );
    expect_clean(&disk);
    drop(disk);
    daemon.close();
}

#[test]
fn every_shape_of_queue_and_request() {
    for event_idx in [false, true] {
        for indirect in [false, true] {
            for (segments, queue_size) in [(1, 4), (7, 16), (100, 128)] {
                let daemon = Daemon::new();
                if segments == 7 {
                    // Nothing but kicks.
                    daemon.iothread.handle().set_poll_max_ns(0);
                }
                let mut disk = daemon.connect_with(frontend::Options {
                    event_idx,
                    indirect,
                    segments,
                    queue_size,
                    reply_ack: event_idx,
                    ..frontend::Options::default()
                });
                for round in 0..40_u8 {
                    assert_eq!(
                        write(&mut disk, u64::from(round) * 128, round, 65536),
                        STATUS_OK
                    );
                }
                for round in (0..40_u8).rev() {
                    assert_eq!(
                        read(&mut disk, u64::from(round) * 128, 65536),
                        vec![round; 65536]
                    );
                }
                expect_clean(&disk);
            }
        }
    }
}

#[test]
fn many_requests_at_once_over_many_wraps_of_the_ring() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    let mut left = 20_000_u32;
    let mut outstanding = 0;
    while left > 0 || outstanding > 0 {
        while left > 0 && outstanding < 64 {
            let request = Request::Read {
                sector: u64::from(left % 1000) * 8,
                len: 4096,
            };
            disk.submit(0, request).unwrap();
            (left, outstanding) = (left - 1, outstanding + 1);
        }
        disk.kick(0).unwrap();
        assert!(
            disk.wait(0, SECONDS)
                .unwrap()
                .expect("a completion")
                .is_ok()
        );
        outstanding -= 1;
        while let Some(completion) = disk.poll(0) {
            assert!(completion.is_ok());
            outstanding -= 1;
        }
    }
    expect_clean(&disk);
}

#[test]
fn what_a_guest_must_not_ask_is_answered_and_counted() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    let end = (DISK_BYTES / 512) as u64;
    let mut status = |request: Request<'_>| disk.execute(0, request, SECONDS).unwrap().status;
    assert_eq!(
        status(Request::Read {
            sector: end,
            len: 512
        }),
        STATUS_IOERR
    );
    assert_eq!(
        status(Request::Read {
            sector: u64::MAX,
            len: 512
        }),
        STATUS_IOERR
    );
    assert_eq!(
        status(Request::Read {
            sector: 0,
            len: 511
        }),
        STATUS_IOERR
    );
    assert_eq!(
        status(Request::Write {
            sector: end - 1,
            data: &[0; 1024]
        }),
        STATUS_IOERR
    );
    let other = Request::Other {
        kind: 99,
        sector: 0,
        payload: &[],
    };
    assert_eq!(status(other), STATUS_UNSUPP);
    let two = [Segment::new(0, 1), Segment::new(8, 1)];
    assert_eq!(status(Request::Discard(&two)), STATUS_UNSUPP);
    assert_eq!(
        status(Request::Discard(&[Segment::new(end, 8)])),
        STATUS_IOERR
    );
    let stats = daemon.export.backend().stats();
    assert_eq!(
        (stats.rd.invalid, stats.wr.invalid, stats.unmap.invalid),
        (3, 1, 1)
    );
    assert_eq!((stats.rd.failed, stats.holds), (0, 0));
    assert_eq!(daemon.export.trouble(), None);
    expect_clean(&disk);
}

#[test]
fn read_only_export() {
    let daemon = Daemon::with(Options::new("ro"));
    let mut disk = daemon.connect();
    assert_eq!(read(&mut disk, 0, 4096), vec![0; 4096]);
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_IOERR);
    let mut status = |request: Request<'_>| disk.execute(0, request, SECONDS).unwrap().status;
    assert_eq!(
        status(Request::Discard(&[Segment::new(0, 8)])),
        STATUS_IOERR
    );
    assert_eq!(status(Request::Flush), STATUS_OK);
    assert_eq!(daemon.faults.writes.load(Ordering::SeqCst), 0);
}

#[test]
fn writethrough_makes_every_write_durable() {
    let options = Options {
        writethrough: true,
        ..writable()
    };
    let daemon = Daemon::with(options);
    let mut disk = daemon.connect();
    assert_eq!(disk.config().wce, 0);
    write(&mut disk, 0, 1, 512);
    assert_eq!(daemon.faults.fua.load(Ordering::SeqCst), 1);
    disk.set_write_cache(true).unwrap();
    write(&mut disk, 0, 1, 512);
    assert_eq!(daemon.faults.fua.load(Ordering::SeqCst), 1);
    assert_eq!(daemon.faults.writes.load(Ordering::SeqCst), 2);
}

/// A driver that has negotiated neither FLUSH nor CONFIG_WCE cannot make anything durable itself.
#[test]
fn without_flush_there_is_no_write_cache() {
    use frontend::protocol::feature::{CONFIG_WCE, FLUSH};
    for (missing, fua) in [(CONFIG_WCE, 0), (FLUSH | CONFIG_WCE, 1)] {
        let daemon = Daemon::new();
        let mut disk = daemon.connect_with(frontend::Options {
            features_mask: !missing,
            ..frontend::Options::default()
        });
        write(&mut disk, 0, 1, 512);
        assert_eq!(daemon.faults.fua.load(Ordering::SeqCst), fua);
    }
}

#[test]
fn options_are_checked() {
    let options = Options {
        serial: "x".repeat(21),
        ..writable()
    };
    let error = Daemon::try_with(options).err().unwrap();
    assert!(error.to_string().contains("at most 20"), "{error}");
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
