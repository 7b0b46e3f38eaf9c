//! Writers in the guest, and how long one is waited for.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::files::{Files, stamp};
use crate::qmp::Qmp;

/// An emulated guest on a loaded machine is slow.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(200);
/// A boot takes some seconds of CPU time.
pub const BOOT: Duration = Duration::from_secs(200);
/// What a QMP command may take, whatever is held: one that waits for what is held waits for ever, and
/// an emulated guest on a busy machine keeps QEMU from its monitor for a while.
pub const PROMPT: Duration = Duration::from_secs(20);

const SECTOR_BYTES: u64 = 512;

/// A command that is answered at once. Returns how long it took.
///
/// # Errors
/// The command's; if it took longer than [`PROMPT`].
pub fn promptly(qmp: &mut Qmp, command: &str) -> Result<Duration> {
    let begin = Instant::now();
    qmp.execute(command, Value::Null)?;
    let took = begin.elapsed();
    ensure!(took < PROMPT, "{command} took {took:?}");
    Ok(took)
}

/// A script that writes the files side by side, into the page cache only; [`Inside::verify_files`](super::Inside::verify_files)
/// knows them.
#[must_use]
pub fn buffered_writers(files: &Files) -> String {
    let Files {
        dir,
        seed,
        count,
        kib,
    } = files;
    format!(
        "mkdir -p '{dir}' || exit
pids=
for file in $(seq 0 $(({count} - 1))); do
    stamps {seed} $file 0 $(({kib} * 2)) >'{dir}'/$file & pids=\"$pids $!\"
done
for pid in $pids; do wait $pid || exit; done"
    )
}

/// Writers that go around the guest's page cache, each to its own part of a raw disk, in requests
/// of 4 KiB: as many requests at a time as there are writers.
#[derive(Debug, Clone, Copy)]
pub struct DirectWriters {
    /// Decides the content.
    pub seed: u32,
    /// How many there are.
    pub writers: u64,
    /// Requests of each writer.
    pub pages: u64,
}

impl DirectWriters {
    /// Bytes of the disk that are used.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.writers * self.pages * 4096
    }

    /// The script that writes them to `disk`, such as `vda`. It prints `started` when all of them write.
    #[must_use]
    pub fn script(&self, disk: &str) -> String {
        let Self {
            seed,
            writers,
            pages,
        } = self;
        let sectors = pages * 8;
        format!(
            "pids=
for writer in $(seq 0 $(({writers} - 1))); do
    stamps {seed} $writer 0 {sectors} >/tmp/$writer || exit
done
for writer in $(seq 0 $(({writers} - 1))); do
    dd if=/tmp/$writer of=/dev/{disk} bs=4k seek=$((writer * {pages})) oflag=direct conv=notrunc \\
        status=none & pids=\"$pids $!\"
done
echo started
for pid in $pids; do wait $pid || exit; done
rm -f /tmp/*"
        )
    }

    /// What was written is in the raw image.
    ///
    /// # Errors
    /// The first sector that is another; errors of the file.
    pub fn check(&self, image: &Path) -> Result<()> {
        let image = File::open(image).with_context(|| image.display().to_string())?;
        let mut found = [0; 512];
        for sector in 0..self.bytes() / SECTOR_BYTES {
            image.read_exact_at(&mut found, sector * SECTOR_BYTES)?;
            let (writer, own) = (sector / (self.pages * 8), sector % (self.pages * 8));
            let expected = stamp(self.seed, u32::try_from(writer)?, own);
            ensure!(
                found[..] == expected[..],
                "sector {sector}: {:?}",
                String::from_utf8_lossy(&found[..64])
            );
        }
        Ok(())
    }
}
