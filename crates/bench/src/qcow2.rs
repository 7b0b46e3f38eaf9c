//! Images in the format qcow2: how they are made, and how a server is told of one.

use anyhow::{Context, Result};
use std::path::Path;
use testkit::qcow2_image::run;

/// Options of `qemu-img create`: each cluster has its place, and nothing is in it.
pub const ALLOCATED: &str = "preallocation=metadata";
/// The same: no cluster has a place.
pub const EMPTY: &str = "preallocation=off";

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

/// Makes an image of what is in `raw`, each cluster of it with its place.
///
/// # Errors
/// If qemu-img is not there, or fails.
pub fn convert(raw: &Path, file: &Path) -> Result<()> {
    let [raw, file] = [raw, file].map(|path| path.to_str().context("a name that is text"));
    let all = [
        "convert", "-q", "-S0", "-tnone", "-Tnone", "-fraw", "-Oqcow2",
    ];
    run("qemu-img", &[&all[..], &[raw?, file?]].concat())?;
    Ok(())
}

/// The argument of `--blockdev` for an image. `file_options` are those of the node with the file, each after a
/// comma and with `file.` before it.
pub fn blockdev(file: &Path, file_options: &str) -> String {
    format!(
        "driver=qcow2,node-name=disk,file.driver=file,file.filename={}{file_options}",
        file.display()
    )
}
