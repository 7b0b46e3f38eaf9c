//! Images in the format qcow2: how they are made, and how a server is told of one.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use testkit::qcow2_image::run;

/// Options of `qemu-img create`: each cluster has its place, and nothing is in it.
pub const ALLOCATED: &str = "preallocation=metadata";
/// The same: no cluster has a place.
pub const EMPTY: &str = "preallocation=off";
/// The end of the name of an image with a data file.
pub const WITH_DATA: &str = "data.qcow2";
/// That of its data file, beside it.
pub const DATA: &str = "data";

/// Makes an image for a disk of `bytes` bytes, in place of one that is there.
///
/// # Errors
/// If qemu-img is not there, or fails.
pub fn create(file: &Path, bytes: u64, options: &str) -> Result<()> {
    let name = file.to_str().context("a name that is text")?;
    let bytes = bytes.to_string();
    run(
        "qemu-img",
        &["create", "-qfqcow2", "-o", options, name, &bytes],
    )?;
    Ok(())
}

/// Makes an image over the image `below`, without anything of its own, in place of one that is there.
///
/// # Errors
/// If qemu-img is not there, or fails.
pub fn overlay(file: &Path, below: &Path) -> Result<()> {
    let name = file.to_str().context("a name that is text")?;
    // With what suits the rival best; it would be threads else.
    let below = serde_json::json!({ "driver": "qcow2",
        "file": { "driver": "file", "filename": below, "aio": "io_uring" } });
    let below = format!("json:{below}");
    let all = ["create", "-qfqcow2", "-F", "qcow2", "-b", &below, name];
    run("qemu-img", &all)?;
    Ok(())
}

/// Writes 1 MiB of each 5 MiB, as the one `number`, up to `bytes`.
///
/// # Errors
/// If qemu-io is not there, or fails.
pub fn write_a_fifth(file: &Path, number: u64, bytes: u64) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let writes = (number * MIB..bytes).step_by(5 << 20);
    let writes: Vec<_> = writes
        .map(|at| format!("write -q -P {} {at} {}", number + 1, MIB.min(bytes - at)))
        .collect();
    let mut all = vec!["-n", "-fqcow2"];
    all.extend(writes.iter().flat_map(|write| ["-c", write.as_str()]));
    all.push(file.to_str().context("a name that is text")?);
    run("qemu-io", &all)?;
    Ok(())
}

/// Makes an image of what is in `raw`, each cluster of it with its place: in the file `data`, if there is to be one.
///
/// # Errors
/// If qemu-img is not there, or fails.
pub fn convert(raw: &Path, file: &Path, data: Option<&Path>) -> Result<()> {
    let [raw, file] = [raw, file].map(|path| path.to_str().context("a name that is text"));
    let mut all = vec![
        "convert", "-q", "-S0", "-tnone", "-Tnone", "-fraw", "-Oqcow2",
    ];
    let data = data.map(|data| format!("data_file={}", data.display()));
    all.extend(data.iter().flat_map(|data| ["-o", data.as_str()]));
    all.extend([raw?, file?]);
    run("qemu-img", &all)?;
    Ok(())
}

/// Where the data file of an image is whose name ends with [`WITH_DATA`].
pub fn data_of(file: &Path) -> PathBuf {
    file.with_extension("")
}

/// The argument of `--blockdev` for an image. `file_options` are those of the node with the file, each after a
/// comma and with `file.` before it.
pub fn blockdev(file: &Path, file_options: &str) -> String {
    format!(
        "driver=qcow2,node-name=disk,file.driver=file,file.filename={}{file_options}",
        file.display()
    )
}
