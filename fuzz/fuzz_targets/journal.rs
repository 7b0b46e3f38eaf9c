//! The file of a journal, which anybody may have damaged.
#![no_main]

use std::io::BufReader;

use journal::{Content, Entry, Lines};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes, bytes.len().max(1));
    // Where the reads of the file end does not matter.
    assert_eq!(read(bytes, 7), whole);
    // What a writer does at opening: the torn end is cut off, and the next line is on a line of its own.
    let cut = usize::try_from(whole.whole_bytes).expect("it is a part of the input");
    let next = b"{\"seq\":7,\"time\":\"2026-11-27T17:58:12Z\",\"data\":null}\n";
    let repaired = [&bytes[..cut], next].concat();
    let again = read(&repaired, 4096);
    let (last, before) = again.entries.split_last().expect("one was appended");
    assert_eq!(
        (before, &last.content),
        (&whole.entries[..], &Content::Data(serde_json::Value::Null))
    );
    assert!(!again.torn);
});

#[derive(Debug, PartialEq)]
struct Found {
    entries: Vec<Entry>,
    skipped: u64,
    torn: bool,
    whole_bytes: u64,
}

fn read(bytes: &[u8], buffer: usize) -> Found {
    let mut lines = Lines::new(BufReader::with_capacity(buffer, bytes));
    let entries: Vec<_> = lines
        .by_ref()
        .map(|entry| entry.expect("memory can be read"))
        .collect();
    let skipped = lines.skipped();
    let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(
        entries.len() as u64 + skipped.lines,
        ends as u64,
        "a line is read or counted"
    );
    Found {
        entries,
        skipped: skipped.lines,
        torn: skipped.torn_end,
        whole_bytes: lines.whole_bytes(),
    }
}
