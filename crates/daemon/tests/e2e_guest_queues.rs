//! A guest with several CPUs on an export whose number of queues nobody has set.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is one")]

mod harness;

use anyhow::{Result, ensure};
use harness::{MIB, PATIENCE, Setup, sparse};
use serde_json::json;
use testkit::Guest;
use testkit::guest::VhostUserBlk;

/// QEMU asks for as many queues as there are CPUs. An export had one, and with the line in README
/// QEMU ended at once: "The maximum number of queues supported by the backend is 1".
#[test]
fn as_many_queues_as_cpus() -> Result<()> {
    for cpus in [2, 4] {
        let setup = Setup::new()?;
        let image = setup.path("disk.img");
        sparse(&image, 16 * MIB)?;
        let file = json!({ "driver": "file", "node-name": "file", "filename": image });
        let server = setup
            .blockdev(&file)
            .export("vda", "file", json!({}))
            .start()?;
        let disk = VhostUserBlk::new(server.socket("vda"));
        let mut guest = Guest::builder().cpus(cpus).disk(disk).start()?;
        guest.wait_boot(PATIENCE * 2)?;
        let queues = guest.run("ls /sys/block/vda/mq | wc -l", PATIENCE)?;
        ensure!(queues.output.trim() == cpus.to_string(), "{queues:?}");
        // Each is used.
        for cpu in 0..cpus {
            let write = format!(
                "printf '%04096d' {cpu} | \
                 taskset -c {cpu} dd of=/dev/vda bs=4k seek={cpu} oflag=direct conv=notrunc"
            );
            let written = guest.run(&write, PATIENCE)?;
            ensure!(written.status == 0, "{written:?}");
        }
        guest.power_off(PATIENCE)?;
        let found = std::fs::read(&image)?;
        for cpu in 0..cpus {
            let (from, expected) = (usize::try_from(cpu)? * 4096, format!("{cpu:04096}"));
            ensure!(
                &found[from..from + 4096] == expected.as_bytes(),
                "CPU {cpu}"
            );
        }
    }
    Ok(())
}
