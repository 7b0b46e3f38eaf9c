//! Images that are broken on purpose: our check and that of qemu-img agree on each, and where ours finds more, the table of
//! breakages says why. What our repair leaves is clean for both, wherever it is cut off.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test"
)]

mod breakages;
mod cut;
mod images;

use std::fs;
use std::path::Path;

use standfast_qcow2::check::{Finding, Fix, Limits, Problem, Report, check, repair};
use standfast_qcow2::{Image, WriteAt};

use self::breakages::{Random, TABLE, Victim};
use self::cut::Cut;
use self::images::{KINDS, Verdict, disk, make, peer};

fn rounds() -> u64 {
    match std::env::var_os("STANDFAST_SOAK") {
        Some(_) => 20,
        None => 1,
    }
}

fn ours(bytes: &[u8]) -> (Verdict, String) {
    let image = match Image::open(&bytes) {
        Ok(image) => image,
        Err(error) => return (Verdict::Refused, error.to_string()),
    };
    let report = check(&image, &Limits::default());
    (verdict(&report), words(&report))
}

fn verdict(report: &Report) -> Verdict {
    match report.errors {
        0 => Verdict::Checked {
            corrupt: report.corruptions > 0,
            leaks: report.leaks > 0,
        },
        _ => Verdict::Refused,
    }
}

fn words(report: &Report) -> String {
    let lines = report
        .findings
        .iter()
        .take(8)
        .map(|finding| format!("{finding}\n"));
    lines.collect()
}

/// Ours against QEMU's: the same, or ours knows more and the table says why.
fn agree(ours: Verdict, peer: Verdict, stricter: bool) -> bool {
    let Verdict::Checked { corrupt, leaks } = ours else {
        // It did not get to the end, and QEMU is not content, either.
        return peer != Verdict::CLEAN || stricter;
    };
    match peer {
        Verdict::Refused => corrupt || stricter,
        Verdict::Checked {
            corrupt: c,
            leaks: l,
        } => (corrupt, leaks) == (c, l) || (stricter && (corrupt || (!c && (leaks || !l)))),
    }
}

#[test]
fn both_checks_agree() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broken.qcow2");
    let mut failures = Vec::new();
    let (mut images, mut stricter) = (0, 0);
    for (number, kind) in KINDS.iter().enumerate() {
        let whole = directory.path().join(format!("whole{number}.qcow2"));
        make(kind, &whole);
        let bytes = fs::read(&whole).unwrap();
        let (ours_whole, words) = ours(&bytes);
        assert_eq!(ours_whole, Verdict::CLEAN, "{kind:?}: {words}");
        assert_eq!(peer(&whole).0, Verdict::CLEAN, "{kind:?}");
        for (breakage, (name, why, apply)) in TABLE.iter().enumerate() {
            for round in 0..rounds() {
                let seed = round << 32 | (breakage as u64) << 8 | number as u64;
                let mut victim = Victim::new(bytes.clone(), seed);
                if apply(&mut victim).is_none() || victim.bytes == bytes {
                    continue;
                }
                images += 1;
                fs::write(&path, &victim.bytes).unwrap();
                let (ours, our_words) = ours(&victim.bytes);
                let (peer, peer_words) = peer(&path);
                stricter += u64::from(ours != peer);
                if !agree(ours, peer, why.is_some()) {
                    failures.push(format!(
                        "{name} (seed {seed:#x}, {}):\nours {ours:?}\n{our_words}QEMU {peer:?}\n{peer_words}",
                        kind.options
                    ));
                }
            }
        }
    }
    println!("{images} images, {stricter} of which are not the same for both");
    let text = failures.join("\n");
    assert!(
        failures.is_empty(),
        "{} of {images}:\n{text}",
        failures.len()
    );
    assert!(images >= 200, "{images}");
}

/// Wherever a repair is cut off, and whatever of its last writes is lost: there are not more corruptions than before, and the
/// next repair comes to the same end. What it calls clean is so for QEMU.
#[test]
fn a_repair_makes_nothing_worse() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("repaired.qcow2");
    let limits = limits();
    let (mut repaired, mut clean) = (0, 0);
    for (number, kind) in KINDS.iter().enumerate() {
        let whole = directory.path().join(format!("whole{number}.qcow2"));
        make(kind, &whole);
        let bytes = fs::read(&whole).unwrap();
        for (breakage, (name, _, apply)) in TABLE.iter().enumerate() {
            let seed = (breakage as u64) << 8 | number as u64;
            let mut victim = Victim::new(bytes.clone(), seed);
            let turn = rounds() > 1 || (breakage + number) % 4 == 0;
            if !turn || apply(&mut victim).is_none() {
                continue;
            }
            for fix in [Fix::Leaks, Fix::All] {
                let mut mended = victim.bytes.clone();
                let Ok(fixed) = repair(&mut mended, fix, &limits) else {
                    continue;
                };
                let case = format!("{name}, {fix:?} (seed {seed:#x}, {})", kind.options);
                let before = fixed.before.corruptions;
                assert!(
                    fixed.after.corruptions <= before,
                    "{case}: {}",
                    words(&fixed.after)
                );
                repaired += 1;
                if fixed.after.is_clean() && mended != victim.bytes {
                    clean += 1;
                    fs::write(&path, &mended).unwrap();
                    let (peer, peer_words) = peer(&path);
                    assert_eq!(peer, Verdict::CLEAN, "{case}: {peer_words}");
                }
                cut_off(&victim.bytes, &mended, fix, before, &case);
            }
        }
    }
    println!("{repaired} repairs, {clean} images are clean after it");
    assert!(clean > 30, "{clean} of {repaired}");
}

/// Corruptions but flags that are missing: who does not see them copies, and that is all.
fn harm(report: &Report) -> u64 {
    let harmless =
        |finding: &&Finding| matches!(finding.problem, Problem::Copied { copied: false, .. });
    assert!(report.findings.len() < limits().findings);
    report.corruptions - report.findings.iter().filter(harmless).count() as u64
}

fn limits() -> Limits {
    Limits {
        findings: 100_000,
        ..Limits::default()
    }
}

fn cut_off(broken: &[u8], mended: &[u8], fix: Fix, before: u64, case: &str) {
    let limits = limits();
    for writes in 0..64 {
        let mut cut = Cut::new(broken.to_vec(), writes);
        if repair(&mut cut, fix, &limits).is_ok() {
            return;
        }
        for seed in 0..2 {
            let mut left = cut.what_is_left(seed);
            let image = Image::open(&left).unwrap();
            let report = check(&image, &limits);
            let words = words(&report);
            // Where refcounts are read from what is none, they say something else when the file is longer.
            assert!(
                harm(&report) <= before || case.contains("refcount table"),
                "{case}, cut after {writes} writes: {} corruptions, {before} before: {words}",
                harm(&report)
            );
            drop(image);
            let again = repair(&mut left, fix, &limits).unwrap();
            let mended = mended.to_vec();
            let whole = check(&Image::open(&mended).unwrap(), &limits);
            assert!(
                again.after.corruptions <= whole.corruptions && again.after.leaks <= whole.leaks,
                "{case}, cut after {writes} writes: {}",
                self::words(&again.after)
            );
        }
    }
}

/// Where a table is also another one, its entries are not what they seem to be. A repair once took and set their flags all the
/// same, in the L2 tables below an L1 table that was said to be too long, and the guest's data was lost.
#[test]
fn a_repair_keeps_what_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("read.qcow2");
    let disk = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        disk(&path)
    };
    let (mut read, mut changed) = (0, 0);
    for (number, kind) in KINDS.iter().enumerate() {
        let whole = directory.path().join(format!("whole{number}.qcow2"));
        make(kind, &whole);
        let bytes = fs::read(&whole).unwrap();
        for (breakage, (name, _, apply)) in TABLE.iter().enumerate() {
            let is_table = ["over what", "metadata", "guest data", "another entry"];
            if !is_table.iter().any(|part| name.contains(part)) {
                continue;
            }
            let mut victim = Victim::new(bytes.clone(), (breakage as u64) << 8 | number as u64);
            let Some(before) = apply(&mut victim).and_then(|()| disk(&victim.bytes)) else {
                continue;
            };
            read += 1;
            let mut mended = victim.bytes.clone();
            // It may be given up, and has done no harm then.
            let _ = repair(&mut mended, Fix::All, &limits());
            if mended != victim.bytes {
                changed += 1;
                let after = disk(&mended);
                assert!(after == Some(before), "{name} ({})", kind.options);
            }
        }
    }
    println!("{read} disks that can be read, {changed} of them changed");
    assert!(read > 20 && changed > 5, "{read} {changed}");
}

/// `check -r leaks` of qemu-img 7.2 forgets all snapshots of an image that has bitmaps, too: it has not read them when it
/// writes the header anew. Ours keeps both.
#[test]
fn a_repair_keeps_snapshots_and_bitmaps() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    make(&KINDS[0], &path);
    let mut bytes = fs::read(&path).unwrap();
    let before = Image::open(&bytes).unwrap().header;
    assert!(before.snapshots == 2 && before.features.has_bitmaps());
    bytes.extend([0; 4096]);
    let storage: &mut dyn WriteAt = &mut bytes;
    let fixed = repair(storage, Fix::All, &Limits::default()).unwrap();
    assert!(fixed.after.is_clean());
    assert_eq!(Image::open(&bytes).unwrap().header, before);
}

/// Bytes changed at random: every check and every repair comes to an end, and what is repaired is so.
#[test]
fn any_bytes_come_to_an_end() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken/seeds");
    let limits = Limits {
        memory: 64 << 20,
        findings: 16,
    };
    let mut checked = 0;
    for name in ["plain", "snapshot", "old"] {
        let whole = fs::read(seeds.join(name)).unwrap();
        assert_eq!(ours(&whole).0, Verdict::CLEAN, "{name}");
        for seed in 0..300 * rounds() {
            let mut random = Random(seed);
            let mut bytes = whole.clone();
            for _ in 0..=random.below(4) {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                bytes[at] = match random.below(2) {
                    0 => bytes[at] ^ 1 << random.below(8),
                    _ => u8::try_from(random.below(256)).unwrap(),
                };
            }
            let Ok(image) = Image::open(&bytes) else {
                continue;
            };
            checked += 1;
            let before = check(&image, &limits);
            for fix in [Fix::Leaks, Fix::All] {
                let mut mended = bytes.clone();
                let Ok(fixed) = repair(&mut mended, fix, &limits) else {
                    continue;
                };
                assert_eq!(
                    fixed.before.corruptions, before.corruptions,
                    "{name} {seed}"
                );
                if fixed.after.is_clean() {
                    let once = mended.clone();
                    let again = repair(&mut mended, fix, &limits).unwrap();
                    assert!(again.before.is_clean(), "{name} {seed}");
                    assert!(mended == once, "{name} {seed}: nothing was to be done");
                }
            }
        }
    }
    println!("{checked} images with some of everything");
    assert!(checked > 300, "{checked}");
}
