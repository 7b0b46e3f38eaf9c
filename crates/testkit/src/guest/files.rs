//! Files in the guest whose content is known.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use crate::command::run;

/// Bytes of a stamped sector.
const SECTOR_BYTES: usize = 512;

/// A set of files in one directory of the guest. Every sector of them is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Directory in the guest; made if it is not there.
    pub dir: String,
    /// Decides the content.
    pub seed: u32,
    /// Number of files; they are called 0, 1, ...
    pub count: u32,
    /// Size of each in KiB.
    pub kib: u32,
}

impl Files {
    /// The command that writes them. After each it prints `synced N`: the file N is on the disk.
    #[must_use]
    pub fn write_command(&self) -> String {
        self.command("write")
    }

    /// The command that compares them with what they should be, past the guest's page cache. Its
    /// status is 0 if nothing differs.
    #[must_use]
    pub fn verify_command(&self) -> String {
        self.command("verify")
    }

    fn command(&self, verb: &str) -> String {
        let Self {
            dir,
            seed,
            count,
            kib,
        } = self;
        format!("files {verb} '{dir}' {seed} {count} $(({kib} * 2))")
    }
}

/// The content of a sector: what `stamps SEED FILE FIRST COUNT` in the guest writes from FIRST on.
/// The command can also write to a whole device.
#[must_use]
pub fn stamp(seed: u32, file: u32, sector: u64) -> Vec<u8> {
    let line = format!(
        "seed {seed:>10} file {file:>10} sector {sector:>10}{:14}\n",
        ""
    );
    line.repeat(SECTOR_BYTES / line.len()).into_bytes()
}

/// Makes an image of `bytes` (sparse) with an ext4 file system, as big as that. The guest never
/// goes on after an error: the file system becomes read-only.
///
/// # Errors
/// If the file cannot be made, or mkfs.ext4 (package e2fsprogs) fails.
pub fn make_ext4_image(path: &Path, bytes: u64) -> Result<()> {
    make_ext4_of(path, bytes, None)
}

/// The same, with what is in a directory.
pub(super) fn make_ext4_of(path: &Path, bytes: u64, dir: Option<&Path>) -> Result<()> {
    File::create(path)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| path.display().to_string())?;
    let name = path.to_str().context("the image's name is not UTF-8")?;
    // Nothing is left for the guest's kernel to initialise at a time of its choice.
    let extended = "lazy_itable_init=0,lazy_journal_init=0";
    let mut options = vec![
        "-q",
        "-F",
        "-m",
        "0",
        "-b",
        "4096",
        "-e",
        "remount-ro",
        "-E",
        extended,
    ];
    if let Some(dir) = dir {
        options.extend([
            "-d",
            dir.to_str().context("the directory's name is not UTF-8")?,
        ]);
    }
    options.push(name);
    run("mkfs.ext4", &options)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The guest's generator and the one of the host say the same.
    #[test]
    fn stamps_are_the_same_on_both_sides() {
        let script = include_str!("stamps.sh");
        let output = Command::new("sh")
            .args(["-c", script, "stamps", "4294967295", "7", "99", "3"])
            .output()
            .unwrap();
        let expected: Vec<_> = (99..102)
            .flat_map(|sector| stamp(u32::MAX, 7, sector))
            .collect();
        assert_eq!(expected.len(), 3 * SECTOR_BYTES);
        assert_eq!(output.stdout, expected);
    }

    #[test]
    fn commands_quote_and_convert() {
        let files = Files {
            dir: "/mnt/a b".into(),
            seed: 7,
            count: 3,
            kib: 20,
        };
        assert_eq!(
            files.write_command(),
            "files write '/mnt/a b' 7 3 $((20 * 2))"
        );
    }
}
