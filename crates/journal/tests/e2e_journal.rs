//! A journal on storage that fails: full, read-only, broken, frozen. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use standfast_journal::{
    Content, Entry, FlushError, Journal, LINE_BYTES_MAX, Options, Skipped, read,
};
use testkit::{Ext4, Tmpfs, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

fn options(dir: &Path) -> Options {
    Options {
        queue_bytes_max: LINE_BYTES_MAX,
        ..Options::new(dir.join("journal.jsonl"))
    }
}

fn entries(path: &Path) -> (Vec<Entry>, Skipped) {
    let mut reader = read(path).unwrap();
    let entries = reader.by_ref().map(Result::unwrap).collect();
    (entries, reader.skipped())
}

fn until(what: &str, condition: impl Fn() -> bool) {
    wait_until(what, LIMIT, || Ok(condition())).unwrap();
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// Numbered entries, and notes of how many were dropped: none is lost without being told.
fn accounted_for(entries: &[Entry]) -> u64 {
    let mut next = 0;
    for entry in entries {
        match &entry.content {
            Content::Data(value) => {
                assert_eq!(value["n"], next, "seq {}", entry.seq);
                next += 1;
            }
            Content::Dropped(count) => next += count,
        }
    }
    next
}

#[test]
fn a_disk_runs_full_and_is_emptied() {
    let tmpfs = Tmpfs::new(2 << 20).unwrap();
    let ballast = tmpfs.path().join("ballast");
    let options = options(tmpfs.path());
    let journal = Journal::open(&options).unwrap();
    let mut n = 0;
    let mut append = |count: u32| {
        for _ in 0..count {
            journal.append(&json!({ "n": n, "x": "x".repeat(1000 + n % 77) }));
            n += 1;
        }
        n as u64
    };
    for round in 0..3 {
        // Of a few bytes less each time, so that the line that does not fit is torn elsewhere.
        std::fs::write(&ballast, vec![1; (1 << 20) - round * 5000]).unwrap();
        append(4000);
        let failed = journal.flush(LIMIT).unwrap_err();
        let FlushError::Failed(failed) = failed else {
            panic!("{failed}")
        };
        assert!(
            failed.to_string().contains("No space left on device"),
            "{failed}"
        );
        assert!(journal.status().failing.is_some() && journal.status().dropped > 0);
        let (found, skipped) = entries(&options.path);
        assert_eq!(
            skipped,
            Skipped::default(),
            "nothing is torn on a full disk"
        );
        accounted_for(&found);
        // Room again: by itself it is written, and nobody flushes.
        tmpfs.resize((round as u64 + 2) * (4 << 20)).unwrap();
        until("it is written", || journal.status().failing.is_none());
        let all = append(10);
        journal.flush(LIMIT).unwrap();
        let (found, skipped) = entries(&options.path);
        assert_eq!((accounted_for(&found), skipped), (all, Skipped::default()));
        let bytes = std::fs::metadata(&options.path).unwrap().len();
        let ballast_bytes = (1 << 20) - round as u64 * 5000;
        // As full as can be again.
        tmpfs.resize(bytes + ballast_bytes + 100_000).unwrap();
    }
    let dropped = |entry: &&Entry| matches!(entry.content, Content::Dropped(_));
    assert!(entries(&options.path).0.iter().filter(dropped).count() >= 3);
}

/// A process that starts on a full disk starts all the same, and one that is killed there leaves whole lines.
#[test]
fn a_start_on_a_full_disk() {
    let tmpfs = Tmpfs::new(1 << 20).unwrap();
    let ballast = tmpfs.path().join("ballast");
    // All of it: no page, and no inode for a lock.
    let full = std::fs::write(&ballast, vec![1; 2 << 20]);
    full.unwrap_err();
    let options = options(tmpfs.path());
    let journal = Journal::open(&options).unwrap();
    journal.append(&json!({ "n": 0 }));
    journal.flush(LIMIT).unwrap_err();
    std::fs::remove_file(&ballast).unwrap();
    journal.flush(LIMIT).unwrap();
    assert_eq!(accounted_for(&entries(&options.path).0), 1);
}

#[test]
fn a_start_on_a_read_only_file_system() {
    let tmpfs = Tmpfs::new(4 << 20).unwrap();
    let mount = tmpfs.path().to_str().unwrap();
    let options = options(tmpfs.path());
    for n in 0..3 {
        if n > 0 {
            run("mount", &["-o", "remount,ro", mount]);
        }
        let journal = Journal::open(&options).unwrap();
        journal.append(&json!({ "n": n }));
        if n > 0 {
            let failed = journal.flush(LIMIT).unwrap_err();
            assert!(
                failed.to_string().contains("Read-only file system"),
                "{failed}"
            );
            run("mount", &["-o", "remount,rw", mount]);
        }
        journal.flush(LIMIT).unwrap();
    }
    let (found, skipped) = entries(&options.path);
    assert_eq!((accounted_for(&found), skipped), (3, Skipped::default()));
}

/// The file system breaks, as it does after an I/O error of its device, and another one is mounted in its
/// place: the journal goes on there by itself.
#[test]
fn a_file_system_breaks_and_is_replaced() {
    let (broken, good) = (Ext4::new(16 << 20).unwrap(), Tmpfs::new(4 << 20).unwrap());
    let mount = broken.path().to_str().unwrap();
    let options = options(broken.path());
    let journal = Journal::open(&options).unwrap();
    journal.append(&json!({ "n": 0 }));
    journal.flush(LIMIT).unwrap();
    run("mount", &["-o", "remount,abort", mount]);
    journal.append(&json!({ "n": 1 }));
    let failed = journal.flush(LIMIT).unwrap_err();
    assert!(matches!(failed, FlushError::Failed(_)), "{failed}");
    run("mount", &["--bind", good.path().to_str().unwrap(), mount]);
    let unmount = Unmount(mount);
    journal.append(&json!({ "n": 2 }));
    let written = || {
        let path = good.path().join("journal.jsonl");
        path.exists() && entries(&path).0.last().is_some_and(|entry| entry.seq == 3)
    };
    until("it is written to the other one", written);
    drop(journal);
    drop(unmount);
}

struct Unmount<'a>(&'a str);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        run("umount", &["-l", self.0]);
    }
}

struct Frozen<'a>(&'a str);

impl<'a> Frozen<'a> {
    fn new(mount: &'a str) -> Self {
        run("fsfreeze", &["--freeze", mount]);
        Self(mount)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", self.0]);
    }
}

/// Storage that does not answer at all: nobody who appends waits, a flush waits as long as it is told, and
/// so does the end.
#[test]
fn storage_that_hangs_stops_nobody() {
    let ext4 = Ext4::new(32 << 20).unwrap();
    let mount = ext4.path().to_str().unwrap();
    let options = options(ext4.path());
    let journal = Journal::open(&options).unwrap();
    journal.append(&json!({ "n": 0 }));
    journal.flush(LIMIT).unwrap();
    let frozen = Frozen::new(mount);
    let mut longest = Duration::ZERO;
    for n in 1..20_000 {
        let start = Instant::now();
        journal.append(&json!({ "n": n, "x": "x".repeat(500) }));
        longest = longest.max(start.elapsed());
    }
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    let status = journal.status();
    assert!(status.dropped > 0 && status.waiting_bytes <= options.queue_bytes_max + 4096);
    let start = Instant::now();
    let slow = journal.flush(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(slow, FlushError::Slow { .. }), "{slow}");
    assert!(start.elapsed() < Duration::from_secs(20));
    drop(frozen);
    journal.flush(LIMIT).unwrap();
    let (found, skipped) = entries(&options.path);
    assert_eq!(
        (accounted_for(&found), skipped),
        (20_000, Skipped::default())
    );
    let frozen = Frozen::new(mount);
    journal.append(&json!({ "n": 20_000 }));
    let start = Instant::now();
    drop(journal);
    assert!(start.elapsed() < Duration::from_secs(30));
    // Who comes next is refused as long as the former thread may still write.
    assert!(Journal::open(&options).is_err());
    drop(frozen);
    until("the lock is free", || Journal::open(&options).is_ok());
    assert_eq!(accounted_for(&entries(&options.path).0), 20_001);
}
