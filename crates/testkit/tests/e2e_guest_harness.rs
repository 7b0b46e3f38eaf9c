//! The guest harness against qemu-storage-daemon: what every test with a real guest relies on.
//!
//! `STANDFAST_GUEST_SERVER` names another storage daemon with the same command line.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is one")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use standfast_testkit::guest::{Files, VhostUserBlk, io_errors, make_ext4_image, stamp};
use standfast_testkit::{Daemon, Guest};

/// Emulation on a loaded machine is slow; on an idle one everything here takes some seconds.
const TIMEOUT: Duration = Duration::from_secs(100);
const IMAGE_BYTES: u64 = 32 << 20;
const RAW_BYTES: u64 = 1 << 20;

/// Serves raw images on sockets of the same name with ".sock".
fn serve(dir: &Path, images: &[&str]) -> Result<Daemon> {
    let program = std::env::var_os("STANDFAST_GUEST_SERVER");
    let program = program.unwrap_or_else(|| "qemu-storage-daemon".into());
    let mut daemon = Daemon::builder(Path::new(&program));
    for image in images {
        let path = dir.join(image).display().to_string();
        let node = format!("file,node-name={image},filename={path},discard=unmap");
        let export = format!(
            "vhost-user-blk,id=export-{image},node-name={image},addr.type=unix,\
             addr.path={path}.sock,writable=on,num-queues=1"
        );
        daemon = daemon
            .args(["--blockdev", &node, "--export", &export])
            .socket(format!("{path}.sock"));
    }
    daemon.start()
}

#[test]
fn files_survive_reboot_and_reset_and_no_error_is_seen() -> Result<()> {
    let dir = tempfile::tempdir()?;
    make_ext4_image(&dir.path().join("files"), IMAGE_BYTES)?;
    File::create(dir.path().join("raw"))?.set_len(RAW_BYTES)?;
    let mut server = serve(dir.path(), &["files", "raw"])?;
    let socket = |name: &str| VhostUserBlk::new(dir.path().join(name));
    let mut guest = Guest::builder()
        .disk(socket("files.sock").reconnect(Duration::from_secs(1)))
        .disk(socket("raw.sock"))
        .start()?;
    let boot = guest.wait_boot(TIMEOUT)?;
    eprintln!("boot after the start: {boot:?}");

    // Commands: status, output as it is, side by side.
    let output = guest.run("echo '  a \\n b'; printf end >&2; exit 3", TIMEOUT)?;
    assert_eq!(
        (output.status, output.output.as_str()),
        (3, "  a \\n b\nend")
    );
    let waiting =
        guest.spawn("echo waiting; while [ ! -e /run/go ]; do sleep 0.1; done; echo gone")?;
    waiting.wait_line("waiting", TIMEOUT)?;
    let before = guest.uptime(TIMEOUT)?;
    assert!(!waiting.has_ended());
    guest.run_ok("touch /run/go", TIMEOUT)?;
    assert_eq!(waiting.wait(TIMEOUT)?.output, "waiting\ngone");
    assert!(guest.uptime(TIMEOUT)? > before);

    // The port takes long scripts, whatever ends meanwhile in the guest.
    for round in 0..5 {
        let text = format!("{round} 'it' $x ").repeat(400);
        let script = format!("cat <<'END'\n{text}\nEND");
        ensure!(guest.run_ok(&script, TIMEOUT)? == text);
    }

    // Files, and a disk without a file system.
    let files = Files {
        dir: "/mnt/set".into(),
        seed: 1,
        count: 8,
        kib: 256,
    };
    guest.mount("vda", "/mnt", TIMEOUT)?;
    guest.write_files(&files, TIMEOUT)?;
    guest.run_ok(
        "stamps 2 0 16 64 | dd of=/dev/vdb bs=4k seek=2 iflag=fullblock oflag=direct status=none",
        TIMEOUT,
    )?;
    guest.verify_files(&files, TIMEOUT)?;
    let boot = guest.reboot(TIMEOUT)?;
    eprintln!("boot after a reboot: {boot:?}");
    guest.mount("vda", "/mnt", TIMEOUT)?;
    guest.verify_files(&files, TIMEOUT)?;

    // A reset in the middle: what was reported as synced is there.
    let more = Files {
        dir: "/mnt/more".into(),
        seed: 3,
        count: 1_000_000,
        ..files.clone()
    };
    let writing = guest.spawn(&more.write_command())?;
    writing.wait_line("synced 3", TIMEOUT)?;
    guest.system_reset(TIMEOUT)?;
    let boot = guest.wait_boot(TIMEOUT)?;
    eprintln!("boot after a reset: {boot:?}");
    assert!(writing.wait(TIMEOUT).is_err());
    guest.mount("vda", "/mnt", TIMEOUT)?;
    guest.verify_files(&files, TIMEOUT)?;
    guest.verify_files(&Files { count: 4, ..more }, TIMEOUT)?;

    // The host finds the same on the raw disk.
    let mut found = vec![0; 64 * 512];
    File::open(dir.path().join("raw"))?.read_exact_at(&mut found, 16 * 512)?;
    let expected: Vec<_> = (16..80).flat_map(|sector| stamp(2, 0, sector)).collect();
    assert!(
        found == expected,
        "raw disk: {}",
        String::from_utf8_lossy(&found)
    );

    guest.check_no_io_errors()?;
    damage_is_found(&guest, &files)?;
    assert_eq!(
        guest.qmp().execute("query-status", Value::Null)?["status"],
        "running"
    );
    assert_eq!(guest.power_off(TIMEOUT)?.code(), Some(0));
    server.terminate(TIMEOUT)?;
    Ok(())
}

/// The checks can fail: a file that differs, and an error in the kernel log.
fn damage_is_found(guest: &Guest, files: &Files) -> Result<()> {
    guest.run_ok(
        "stamps 9 9 9 1 | dd of=/mnt/set/5 bs=512 seek=11 conv=notrunc,fsync status=none",
        TIMEOUT,
    )?;
    let error = guest.verify_files(files, TIMEOUT).err();
    let error = format!("{:#}", error.context("a damaged file was not found")?);
    let found = "sector 11 begins with: seed          9 file          9 sector          9";
    ensure!(
        error.contains("/mnt/set/5 differ") && error.contains(found),
        "{error}"
    );

    let line = "I/O error, dev vdz, sector 0";
    guest.run_ok(&format!("echo '{line}' >/dev/kmsg"), TIMEOUT)?;
    ensure!(
        guest.check_no_io_errors().is_err(),
        "{}",
        guest.kernel_log()?
    );
    let errors = io_errors(&guest.kernel_log()?);
    ensure!(errors.len() == 1 && errors[0].ends_with(line), "{errors:?}");
    Ok(())
}
