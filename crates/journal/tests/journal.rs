//! A journal on storage that works: order, limits, crashes, and who else may be there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test")]

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use standfast_journal::{
    Content, Entry, FlushError, Journal, JournalError, LINE_BYTES_MAX, Options, Skipped, read,
};

const LIMIT: Duration = Duration::from_secs(60);

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    (dir, path)
}

fn small(path: &Path) -> Options {
    Options {
        file_bytes_max: LINE_BYTES_MAX as u64,
        old_files_max: 3,
        ..Options::new(path.to_owned())
    }
}

fn entries(path: &Path) -> (Vec<Entry>, Skipped) {
    let mut reader = read(path).unwrap();
    let entries = reader.by_ref().map(Result::unwrap).collect();
    (entries, reader.skipped())
}

fn values(path: &Path) -> Vec<Value> {
    let (entries, skipped) = entries(path);
    assert_eq!(skipped, Skipped::default());
    let value = |entry: Entry| match entry.content {
        Content::Data(value) => value,
        Content::Dropped(count) => json!({ "dropped": count }),
    };
    entries.into_iter().map(value).collect()
}

fn files(dir: &Path) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                entry.metadata().unwrap().len(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn what_was_appended_is_there_in_order_over_restarts() {
    let (dir, path) = place();
    for round in 0..3 {
        let journal = Journal::open(&Options::new(path.clone())).unwrap();
        for n in 0..100 {
            journal.append(&json!({ "round": round, "n": n, "text": "a\nb\u{0}" }));
        }
        journal.flush(LIMIT).unwrap();
        let status = journal.status();
        assert_eq!(
            (status.written, status.dropped, status.waiting_bytes),
            (100, 0, 0)
        );
        assert!(status.failing.is_none());
        // Whoever drops it without a flush has it in the file as well.
        journal.append(&json!(null));
    }
    let values = values(&path);
    assert_eq!(values.len(), 303);
    assert_eq!(values[201], Value::Null);
    assert_eq!(
        values[202],
        json!({ "round": 2, "n": 0, "text": "a\nb\u{0}" })
    );
    let numbers: Vec<_> = entries(&path).0.iter().map(|entry| entry.seq).collect();
    assert!(numbers.iter().copied().eq(1..=303));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(files(dir.path()).len(), 1, "the lock is gone");
}

#[test]
fn files_are_bounded_in_number_and_size_under_load() {
    let (dir, path) = place();
    let journal = Journal::open(&small(&path)).unwrap();
    let threads = 4;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..threads)
            .map(|thread| {
                let journal = &journal;
                scope.spawn(move || {
                    for n in 0..6000 {
                        journal.append(&json!({ "thread": thread, "n": n, "x": "x".repeat(700) }));
                        if n % 500 == 0 {
                            journal.flush(LIMIT).unwrap();
                        }
                    }
                })
            })
            .collect();
        // Readers see no damage and no gap meanwhile, wherever the files are between two names.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (entries, skipped) = entries(&path);
                assert_eq!((skipped.lines, skipped.missing), (0, 0), "{skipped:?}");
                assert!(entries.is_sorted_by(|a, b| a.seq + 1 == b.seq));
                let total: u64 = files(dir.path()).iter().map(|file| file.1).sum();
                assert!(total <= 4 * LINE_BYTES_MAX as u64, "{total}");
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    journal.flush(LIMIT).unwrap();
    assert_eq!(journal.status().dropped, 0);
    let files = files(dir.path());
    assert_eq!(files.len(), 5, "{files:?}");
    assert!(
        files
            .iter()
            .all(|(_, bytes)| *bytes <= LINE_BYTES_MAX as u64)
    );
    let values = values(&path);
    for thread in 0..threads {
        let of_thread = values.iter().filter(|value| value["thread"] == thread);
        let numbers: Vec<_> = of_thread
            .map(|value| value["n"].as_u64().unwrap())
            .collect();
        assert!(numbers.is_sorted_by(|a, b| a + 1 == *b));
        // All of who was done early may be gone.
        assert!(numbers.is_empty() || numbers.ends_with(&[5999]));
    }
    drop(journal);
    // With fewer old files wanted the surplus goes with the next rotation, and the count goes on.
    let last = entries(&path).0.last().unwrap().seq;
    let options = Options {
        old_files_max: 1,
        ..small(&path)
    };
    let journal = Journal::open(&options).unwrap();
    for _ in 0..3 {
        journal.append(&"x".repeat(LINE_BYTES_MAX / 2));
    }
    journal.flush(LIMIT).unwrap();
    let (entries, skipped) = entries(&path);
    assert_eq!(entries.last().unwrap().seq, last + 3);
    assert_eq!(
        (skipped, self::files(dir.path()).len()),
        (Skipped::default(), 3)
    );
}

#[test]
fn a_second_writer_is_refused() {
    let (_dir, path) = place();
    let first = Journal::open(&Options::new(path.clone())).unwrap();
    let error = Journal::open(&Options::new(path.clone())).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "journal {} is written by another process; stop it, or choose another path",
            path.display()
        )
    );
    first.append(&1);
    drop(first);
    Journal::open(&Options::new(path.clone()))
        .unwrap()
        .append(&2);
    assert_eq!(values(&path), [json!(1), json!(2)]);
}

/// Somebody who cleans up removes the lock, and a second process takes the journal over: the first one
/// must not mix its lines into those of the second one.
#[test]
fn who_has_lost_the_lock_writes_no_more() {
    let (_dir, path) = place();
    let first = Journal::open(&Options::new(path.clone())).unwrap();
    first.append(&1);
    first.flush(LIMIT).unwrap();
    std::fs::remove_file(path.with_extension("jsonl.lock")).unwrap();
    let second = Journal::open(&Options::new(path.clone())).unwrap();
    second.append(&2);
    second.flush(LIMIT).unwrap();
    first.append(&3);
    let failed = first.flush(LIMIT).unwrap_err();
    let FlushError::Failed(failed) = failed else {
        panic!("{failed}")
    };
    assert!(matches!(*failed, JournalError::InUse { .. }), "{failed}");
    drop(second);
    // With the second one gone the first one goes on behind its lines.
    first.flush(LIMIT).unwrap();
    assert_eq!(values(&path), [json!(1), json!(2), json!(3)]);
}

#[test]
fn a_torn_last_line_is_cut_off_at_opening() {
    let (_dir, path) = place();
    let options = Options::new(path.clone());
    let journal = Journal::open(&options).unwrap();
    journal.append(&"whole");
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for torn in 1..whole.len() {
        std::fs::write(&path, [&whole[..], &whole[..torn]].concat()).unwrap();
        assert!(entries(&path).1.torn_end);
        Journal::open(&options).unwrap().append(&torn);
        assert_eq!(values(&path), [json!("whole"), json!(torn)]);
    }
    // The first line, of a process that has died with its first line.
    std::fs::write(&path, &whole[..9]).unwrap();
    Journal::open(&options).unwrap().append(&"first");
    assert_eq!(values(&path), [json!("first")]);
    // Damage further up stays where it is, and is in nobody's way.
    let middle = [b"{\"seq\":1,\"ti\n\0\0\n", &whole[..]].concat();
    std::fs::write(&path, middle).unwrap();
    Journal::open(&options).unwrap().append(&"last");
    let (entries, skipped) = entries(&path);
    assert_eq!(
        (entries.len(), skipped.lines, skipped.torn_end),
        (2, 2, false)
    );
}

#[test]
fn what_is_no_journal_is_left_alone() {
    let (dir, path) = place();
    let refused = |path: &Path| {
        let refused = Journal::open(&Options::new(path.to_owned())).unwrap_err();
        assert!(
            refused.to_string().contains(path.to_str().unwrap()),
            "{refused}"
        );
        refused
    };
    // A disk image begins with zeroes; a tail without line feed would be cut off.
    for precious in [
        &b"\0\0\0\0\0\0\0\0\nprecious"[..],
        b"precious",
        b"{\"sequel\":1}",
    ] {
        std::fs::write(&path, precious).unwrap();
        assert!(matches!(refused(&path), JournalError::NotAJournal { .. }));
        assert_eq!(std::fs::read(&path).unwrap(), precious);
    }
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(matches!(refused(&path), JournalError::NotAJournal { .. }));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    assert!(matches!(refused(&path), JournalError::NotAJournal { .. }));
    assert!(matches!(
        refused(dir.path()),
        JournalError::NotAJournal { .. }
    ));
    refused(&dir.path().join("no").join("where"));
    refused(&dir.path().join("x".repeat(300)));
    let options = Options {
        queue_bytes_max: 1,
        ..Options::new(path.clone())
    };
    assert!(matches!(
        Journal::open(&options),
        Err(JournalError::Options { .. })
    ));
}

#[test]
fn what_cannot_be_a_line_is_counted() {
    let (_dir, path) = place();
    let journal = Journal::open(&Options::new(path.clone())).unwrap();
    journal.append(&"before");
    journal.append(&"x".repeat(LINE_BYTES_MAX));
    journal.append(&std::collections::BTreeMap::from([((1, 2), 3)]));
    journal.append(&"after");
    journal.append("x".repeat(LINE_BYTES_MAX - 200).as_str());
    journal.flush(LIMIT).unwrap();
    let values = values(&path);
    // How many notes tell of them depends on when they were written.
    let dropped = values.iter().filter_map(|value| value["dropped"].as_u64());
    assert_eq!((dropped.sum::<u64>(), journal.status().dropped), (2, 2));
    let kept: Vec<_> = values.iter().filter_map(Value::as_str).collect();
    assert_eq!(kept[..2], ["before", "after"]);
    assert_eq!((kept.len(), &values[0]), (3, &json!("before")));
    assert!(
        values[1]["dropped"].is_u64(),
        "they are told of in their place"
    );
}

/// The directory is removed under the journal, with all that is in it, and made again.
#[test]
fn a_directory_that_is_gone_comes_back() {
    let (dir, _) = place();
    let home = dir.path().join("home");
    let path = home.join("journal.jsonl");
    std::fs::create_dir(&home).unwrap();
    let journal = Arc::new(Journal::open(&Options::new(path.clone())).unwrap());
    journal.append(&1);
    journal.flush(LIMIT).unwrap();
    std::fs::remove_dir_all(&home).unwrap();
    journal.append(&2);
    let failed = journal.flush(LIMIT).unwrap_err();
    assert!(failed.to_string().contains("journal.jsonl"), "{failed}");
    assert!(journal.status().failing.is_some());
    journal.append(&3);
    std::fs::create_dir(&home).unwrap();
    journal.flush(LIMIT).unwrap();
    assert!(journal.status().failing.is_none());
    assert_eq!(values(&path), [json!(2), json!(3)]);
    assert_eq!(entries(&path).0[0].seq, 2, "the count goes on");
    // A file that another program has taken away, as logrotate does, is not written to any more.
    std::fs::rename(&path, home.join("away")).unwrap();
    journal.append(&4);
    journal.flush(LIMIT).unwrap();
    assert_eq!(values(&path), [json!(4)]);
    // One that it has cut is written on at its end.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(0)
        .unwrap();
    journal.append(&5);
    journal.flush(LIMIT).unwrap();
    assert_eq!(values(&path), [json!(5)]);
    // One that somebody has scribbled on, too.
    let scribbler = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    scribbler
        .write_at(b"scribble", std::fs::metadata(&path).unwrap().len())
        .unwrap();
    journal.append(&6);
    journal.flush(LIMIT).unwrap();
    assert_eq!(values(&path), [json!(5), json!(6)]);
}

const CHILD: &str = "STANDFAST_JOURNAL_CHILD";

/// Processes that append in a loop are killed at random moments: what they had flushed is there, and
/// of the rest a prefix.
#[test]
fn killed_while_it_appends() {
    if let Some(path) = std::env::var_os(CHILD) {
        append_for_ever(Path::new(&path));
    }
    let (dir, path) = place();
    let mut random = testkit::Rng::new(7);
    let mut expected_min = 0;
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_while_it_appends", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let flushed = dir.path().join("flushed");
        let until = Instant::now() + LIMIT;
        let before = expected_min;
        let confirmed = || -> u64 {
            let text = std::fs::read_to_string(&flushed).unwrap_or_default();
            text.parse().unwrap_or(0)
        };
        while confirmed() <= before {
            assert!(Instant::now() < until, "the child appends nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        expected_min = confirmed().max(before + 1);
        let (entries, skipped) = entries(&path);
        assert_eq!((skipped.lines, skipped.missing), (0, 0), "round {round}");
        assert!(entries.is_sorted_by(|a, b| a.seq + 1 == b.seq));
        assert!(entries.last().unwrap().seq >= expected_min);
    }
    assert!(files(dir.path()).len() > 3, "it was rotated meanwhile");
}

fn append_for_ever(path: &Path) -> ! {
    let journal = Journal::open(&small(path)).unwrap();
    let last = read(path)
        .unwrap()
        .last()
        .map_or(0, |entry| entry.unwrap().seq);
    let (flushed, new) = (path.with_file_name("flushed"), path.with_file_name("new"));
    for n in last + 1.. {
        journal.append(&json!({ "n": n, "x": "x".repeat(usize::try_from(n % 3000).unwrap()) }));
        if n % 50 == 0 {
            journal.flush(LIMIT).unwrap();
            std::fs::write(&new, n.to_string()).unwrap();
            std::fs::rename(&new, &flushed).unwrap();
        }
    }
    unreachable!("numbers do not end")
}
