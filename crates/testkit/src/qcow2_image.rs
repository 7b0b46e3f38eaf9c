//! qcow2 images as QEMU makes them, with something of everything in them. Needs qemu-img and qemu-io (Debian: qemu-utils).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::rng::Rng;

/// Length of the disk in bytes: not a whole number of clusters, whatever their size.
pub const DISK_BYTES: u64 = (20 << 20) + 512;

/// Options of `qemu-img create` that make images of all kinds there are.
pub const KINDS: [&str; 14] = [
    "cluster_size=64k",
    "compat=0.10,cluster_size=64k",
    "compat=0.10,cluster_size=512",
    "cluster_size=512,refcount_bits=1",
    "cluster_size=4k,refcount_bits=64",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=128k,extended_l2=on",
    "cluster_size=2M,extended_l2=on",
    "cluster_size=2M",
    "cluster_size=64k,compression_type=zstd",
    "cluster_size=16k,extended_l2=on,compression_type=zstd",
    "cluster_size=64k,lazy_refcounts=on",
    "cluster_size=64k,preallocation=metadata",
    "cluster_size=1M,compression_type=zstd,refcount_bits=8",
];

/// Runs a program and returns what it has printed.
///
/// # Errors
/// If it cannot be run, or fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("{program} cannot be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes an empty image with these options (`qemu-img create -o`) in a file, or on a device.
///
/// # Errors
/// If qemu-img fails.
pub fn create(path: &Path, options: &str, bytes: u64) -> Result<()> {
    let (name, bytes) = (name(path)?, bytes.to_string());
    run(
        "qemu-img",
        &["create", "-qfqcow2", "-o", options, name, &bytes],
    )?;
    Ok(())
}

/// Makes an image of what is in a raw one.
///
/// # Errors
/// If qemu-img fails.
pub fn convert(raw: &Path, path: &Path, options: &str) -> Result<()> {
    let (from, to) = (name(raw)?, name(path)?);
    let arguments = ["convert", "-fraw", "-Oqcow2", "-o", options, from, to];
    run("qemu-img", &arguments)?;
    Ok(())
}

/// What `qemu-img check` finds, of the worst kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Clean,
    /// Clusters that are counted and not used.
    Leaks,
    /// More than that, or it cannot be checked.
    Corrupt,
}

/// What `qemu-img check` says of an image, in a file or on a device, whoever has it open; and its words.
///
/// # Errors
/// If qemu-img cannot be run, or does not come to a verdict.
pub fn check(path: &Path) -> Result<(Verdict, String)> {
    let mut command = Command::new("qemu-img");
    let output = command.args(["check", "-Ufqcow2"]).arg(path).output();
    let output = output.context("qemu-img cannot be run")?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words).trim().replace('\n', "; ");
    let verdict = match output.status.code() {
        Some(0) => Verdict::Clean,
        Some(3) => Verdict::Leaks,
        // 2: corruptions; 1: it cannot be checked.
        Some(1 | 2) => Verdict::Corrupt,
        other => bail!("qemu-img ends with {other:?}: {words}"),
    };
    Ok((verdict, words))
}

/// It is as a clean end leaves it.
///
/// # Errors
/// What qemu-img finds.
pub fn is_clean(path: &Path) -> Result<()> {
    let (verdict, words) = check(path)?;
    ensure!(verdict == Verdict::Clean, "{verdict:?}: {words}");
    Ok(())
}

/// Nobody has closed it: leaks at worst. Returns whether there are any.
///
/// # Errors
/// What qemu-img finds.
pub fn is_not_corrupt(path: &Path) -> Result<bool> {
    let (verdict, words) = check(path)?;
    ensure!(verdict != Verdict::Corrupt, "{words}");
    Ok(verdict == Verdict::Leaks)
}

fn name(path: &Path) -> Result<&str> {
    path.to_str().context("a name that is text")
}

/// Makes an image of [`DISK_BYTES`] at `path` with these options, and writes to it: data of all lengths and places, zeroes with
/// and without room kept for them, discards, and clusters that are compressed, over which something else was written.
///
/// # Errors
/// If QEMU's tools fail.
pub fn make(path: &Path, options: &str) -> Result<()> {
    create(path, options, DISK_BYTES)?;
    let name = name(path)?;
    let text = path.with_extension("text");
    std::fs::write(&text, compressible(4 << 20))?;
    let text = text.to_str().context("a name that is text")?;
    let compressed = format!("write -q -c -s {text} 8M 4M");
    let writes = [
        "write -q -P 1 0 100k",
        "write -q -P 2 1049088 4k",
        "write -q -P 3 3144704 300k",
        "write -q -P 4 4500k 900k",
        "write -q -z 4600k 256k",
        "write -q -z -u 5M 128k",
        "write -q -P 5 5251072 1k",
        "write -q -P 6 6M 256k",
        "discard -q 6M 128k",
        &compressed,
        "write -q -P 7 8396800 512",
        "write -q -P 8 10M 1536",
        "write -q -P 9 20M 512",
        "write -q -P 10 15M 37k",
    ];
    let mut arguments = vec!["-f", "qcow2"];
    // What has its cluster already cannot be written compressed.
    let preallocated = options.contains("preallocation");
    for write in writes
        .into_iter()
        .filter(|write| !preallocated || !write.contains("-c"))
    {
        arguments.extend(["-c", write]);
    }
    arguments.push(name);
    run("qemu-io", &arguments)?;
    Ok(())
}

/// Bytes of which about half is the same.
fn compressible(bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(7);
    let mut all = Vec::with_capacity(bytes);
    while all.len() < bytes {
        let word = rng.next_u64().to_le_bytes();
        all.extend(word);
        all.extend([word[0]; 24]);
    }
    all.truncate(bytes);
    all
}

/// Writes what the guest sees of an image to a raw one, by qemu-img.
///
/// # Errors
/// If QEMU's tools fail.
pub fn to_raw(path: &Path, raw: &Path) -> Result<()> {
    let (from, to) = (name(path)?, name(raw)?);
    run("qemu-img", &["convert", "-Oraw", "-fqcow2", from, to])?;
    Ok(())
}

/// What the guest sees of an image, by qemu-img.
///
/// # Errors
/// If QEMU's tools fail.
pub fn content(path: &Path) -> Result<Vec<u8>> {
    let raw = path.with_extension("raw");
    to_raw(path, &raw)?;
    let content = std::fs::read(&raw)?;
    std::fs::remove_file(&raw)?;
    Ok(content)
}
