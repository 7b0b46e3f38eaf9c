//! A driver with I/O of its own: metadata that it writes back to a file on a tmpfs that is really full.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block::{
    BlockError, Capabilities, Child, Driver, HoldScope, Io, IoFuture, Limits, Node, NodeInfo,
    Operation, OwnIo, RunState, Unwritten, WRITE_BACK_MAX,
};
use common::*;
use frontend::protocol::STATUS_OK;
use frontend::{Disk, Request, Token};
use standfast_export_vhost_user_blk::Options;
use testkit::Tmpfs;

const TABLE: usize = 64 << 10;

/// What the test and its driver share.
#[derive(Debug)]
struct Metadata {
    file: File,
    /// The table in memory, if it differs from the file.
    dirty: Mutex<Option<Vec<u8>>>,
    hangs: AtomicBool,
    attempts: AtomicUsize,
    /// Attempts that are under way at once.
    busy: AtomicUsize,
}

impl Metadata {
    async fn write(&self) -> block::Result<()> {
        assert_eq!(self.busy.fetch_add(1, Ordering::SeqCst), 0, "two at once");
        self.attempts.fetch_add(1, Ordering::SeqCst);
        while self.hangs.load(Ordering::SeqCst) {
            iothread::time::sleep(Duration::from_millis(1)).await;
        }
        let written = {
            let mut dirty = self.dirty.lock().unwrap();
            let written = (dirty.as_ref()).map_or(Ok(()), |table| self.file.write_all_at(table, 0));
            if written.is_ok() {
                *dirty = None;
            }
            written
        };
        self.busy.fetch_sub(1, Ordering::SeqCst);
        written.map_err(|error| BlockError::from_errno(error.raw_os_error().unwrap()))
    }
}

/// Every write changes a table, which is written back with a flush or on its own.
#[derive(Debug)]
struct Format {
    file: Child,
    metadata: Arc<Metadata>,
}

impl OwnIo for Format {
    fn write_back(&self) -> IoFuture<'_> {
        IoFuture::new(self.metadata.write())
    }

    fn unwritten(&self) -> Option<Unwritten> {
        let dirty = self.metadata.dirty.lock().unwrap();
        dirty.as_ref().map(|table| Unwritten {
            bytes: table.len() as u64,
            what: "allocation table".to_owned(),
        })
    }
}

impl Driver for Format {
    fn name(&self) -> &'static str {
        "format"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn limits(&self) -> Limits {
        self.file.limits()
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.file]
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            own_io: Some(self),
            ..Capabilities::default()
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        match io.op {
            Operation::Write => {
                *self.metadata.dirty.lock().unwrap() = Some(vec![7; TABLE]);
                self.file.submit(io)
            }
            Operation::Flush => IoFuture::new(async move {
                self.metadata.write().await?;
                self.file.submit(io).await
            }),
            _ => self.file.submit(io),
        }
    }
}

struct Setup {
    daemon: Daemon,
    metadata: Arc<Metadata>,
    tmpfs: Tmpfs,
}

impl Setup {
    /// The table's file system is full.
    fn new() -> Self {
        let tmpfs = Tmpfs::new(1 << 20).unwrap();
        let file = File::create(tmpfs.path().join("table")).unwrap();
        let fill = File::create(tmpfs.path().join("fill")).unwrap();
        let mut at = 0;
        while fill.write_all_at(&[1; 4096], at).is_ok() {
            at += 4096;
        }
        let metadata = Arc::new(Metadata {
            file,
            dirty: Mutex::default(),
            hangs: AtomicBool::default(),
            attempts: AtomicUsize::default(),
            busy: AtomicUsize::default(),
        });
        let options = Options {
            num_queues: 2,
            ..writable()
        };
        let above = Arc::clone(&metadata);
        let daemon = Daemon::below(2, HoldScope::Vm, options, |file| Format {
            file,
            metadata: above,
        });
        Self {
            daemon,
            metadata,
            tmpfs,
        }
    }

    fn connect(&self) -> Disk {
        self.daemon.connect_with(frontend::Options {
            queues: 2,
            ..frontend::Options::default()
        })
    }

    fn node(&self) -> Arc<Node> {
        self.daemon.export.backend().node()
    }

    fn make_space(&self) {
        std::fs::remove_file(self.tmpfs.path().join("fill")).unwrap();
    }

    fn attempts(&self) -> usize {
        self.metadata.attempts.load(Ordering::SeqCst)
    }

    fn is_dirty(&self) -> bool {
        self.metadata.dirty.lock().unwrap().is_some()
    }

    /// What is shown of it.
    fn reason(&self) -> Option<String> {
        let left = self.node().not_on_disk()?;
        assert_eq!((left.unwritten.bytes, &*left.node), (TABLE as u64, "node0"));
        Some(left.reason)
    }

    fn stop(&self) {
        pollster::block_on(self.daemon.control.stop()).unwrap();
        assert_eq!(self.daemon.run_state(), RunState::Paused);
    }
}

fn flush(disk: &mut Disk) -> Token {
    let token = disk.submit(0, Request::Flush).unwrap();
    disk.kick(0).unwrap();
    token
}

#[test]
fn it_fails_at_stop_and_is_held_at_the_next_flush() {
    let setup = Setup::new();
    let mut disk = setup.connect();
    assert_eq!(write(&mut disk, 0, 1, 4096), STATUS_OK);
    assert_eq!((setup.attempts(), setup.reason()), (0, None));
    setup.stop();
    wait_until("the failure", || setup.reason().is_some());
    assert!(setup.reason().unwrap().contains("No space left"));
    // Nobody's request failed by it: what was acknowledged stays so, and nothing is held.
    assert_eq!(setup.daemon.held(), 0);
    setup.daemon.cont();
    assert_eq!(read(&mut disk, 0, 4096), vec![1; 4096]);
    assert_eq!(setup.daemon.run_state(), RunState::Running);

    let token = flush(&mut disk);
    setup.daemon.wait_held(1);
    assert_eq!(setup.daemon.run_state(), RunState::IoError);
    expect_nothing(&mut disk);
    setup.make_space();
    setup.daemon.cont();
    expect(&mut disk, &[token]);
    assert!(!setup.is_dirty() && setup.reason().is_none());
    let table = std::fs::read(setup.tmpfs.path().join("table")).unwrap();
    assert_eq!(table, [7; TABLE]);
    expect_clean(&disk);
    drop(disk);
    setup.daemon.close();
}

#[test]
fn it_is_tried_again_at_each_drain_and_a_drain_succeeds() {
    let setup = Setup::new();
    let mut disk = setup.connect();
    assert_eq!(write(&mut disk, 0, 1, 4096), STATUS_OK);
    for _ in 0..3 {
        let before = setup.attempts();
        drop(pollster::block_on(setup.daemon.export.backend().drain()));
        assert!(setup.attempts() > before);
        assert!(setup.reason().is_some() && setup.is_dirty());
    }
    setup.make_space();
    drop(pollster::block_on(setup.daemon.export.backend().drain()));
    assert!(!setup.is_dirty() && setup.reason().is_none());
    let before = setup.attempts();
    drop(pollster::block_on(setup.daemon.export.backend().drain()));
    assert_eq!(setup.attempts(), before, "there is nothing to write");
    drop(disk);
    setup.daemon.close();
}

#[test]
fn the_end_of_the_export_writes_it_or_says_that_it_is_not_on_disk() {
    for space in [true, false] {
        let setup = Setup::new();
        let mut disk = setup.connect();
        assert_eq!(write(&mut disk, 0, 1, 4096), STATUS_OK);
        drop(disk);
        if space {
            setup.make_space();
        }
        let (node, metadata) = (setup.node(), Arc::clone(&setup.metadata));
        // The end of the daemon names it, although nothing has failed so far.
        let left = node.left_unwritten().map(|left| left.to_string());
        assert!(left.is_some_and(|left| left.ends_with("are not on disk: it has not been tried")));
        let Setup { daemon, tmpfs, .. } = setup;
        daemon.close();
        let left = node.not_on_disk().map(|left| left.to_string());
        assert_eq!(metadata.dirty.lock().unwrap().is_none(), space);
        assert_eq!(left.is_none(), space);
        assert_eq!(node.left_unwritten().map(|left| left.to_string()), left);
        if let Some(left) = left {
            let begins = "node 'node0': 65536 bytes of allocation table are not on disk: ";
            assert!(left.starts_with(begins), "{left}");
        }
        drop(tmpfs);
    }
}

#[test]
fn storage_that_does_not_answer_is_waited_for_once() {
    let setup = Setup::new();
    let mut disk = setup.connect();
    assert_eq!(write(&mut disk, 0, 1, 4096), STATUS_OK);
    setup.metadata.hangs.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    setup.stop();
    assert!(begun.elapsed() < WRITE_BACK_MAX, "stop does not wait");
    let begun = Instant::now();
    drop(pollster::block_on(setup.daemon.export.backend().drain()));
    assert!(begun.elapsed() < 2 * WRITE_BACK_MAX + SECONDS);
    assert_eq!(setup.reason().unwrap(), "the storage does not answer");
    let begun = Instant::now();
    for _ in 0..3 {
        drop(pollster::block_on(setup.daemon.export.backend().drain()));
    }
    assert!(begun.elapsed() < WRITE_BACK_MAX, "it is waited for again");
    // It answers at last. Only those that came before it was given up have waited for their turn: of the
    // stop and of the first drain, from two iothreads.
    setup.metadata.hangs.store(false, Ordering::SeqCst);
    let is_full = || setup.reason().is_some_and(|text| text.contains("No space"));
    wait_until("the failure", is_full);
    std::thread::sleep(A_WHILE);
    assert!(is_full() && setup.attempts() <= 4, "{}", setup.attempts());
    setup.make_space();
    drop(pollster::block_on(setup.daemon.export.backend().drain()));
    assert!(!setup.is_dirty() && setup.reason().is_none());
    setup.daemon.cont();
    // So does the export's end, with storage that never answers.
    setup.metadata.hangs.store(true, Ordering::SeqCst);
    assert_eq!(write(&mut disk, 0, 2, 4096), STATUS_OK);
    let node = setup.node();
    let (begun, metadata) = (Instant::now(), Arc::clone(&setup.metadata));
    drop(disk);
    pollster::block_on(setup.daemon.export.close());
    assert!(begun.elapsed() < 4 * WRITE_BACK_MAX + SECONDS);
    let left = node.not_on_disk().unwrap();
    assert_eq!(left.reason, "the storage does not answer");
    metadata.hangs.store(false, Ordering::SeqCst);
    wait_until("the end", || node.not_on_disk().is_none());
    setup.daemon.close();
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
