//! A link by commands, to a real QEMU.

mod harness;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::vmm::{FullDisk, qemu_state};
use harness::{PATIENCE, Setup};
use serde_json::{Value, json};
use testkit::guest::{DirectWriters, GUEST_PATIENCE};

#[test]
fn programs_pause_and_resume() -> Result<()> {
    let setup = Setup::new()?;
    let monitor = setup.path("commands.sock");
    // Whoever runs this has built all programs: cargo builds those of this package only.
    let tool = Path::new(env!("CARGO_BIN_EXE_standfastd")).with_file_name("standfast");
    let tool = tool.to_str().context("the path is text")?;
    let say = |command: &str| json!([tool, "qmp", monitor, command]);
    let state = "case $(\"$0\" qmp \"$1\" query-status) in
*'\"running\": true'*) echo running ;;
*'\"running\": false'*) echo paused ;;
*) exit 1 ;;
esac";
    let setup = setup.option(
        "--object",
        json!({ "qom-type": "vmm-command", "id": "vm0", "pause": say("stop"), "resume": say("cont"),
            "state": ["sh", "-c", state, tool, monitor] }),
    );
    let mut disk = FullDisk::new(setup, &monitor)?;
    let running = json!({ "type": "vmm-command", "state": "connected", "vm": "running",
        "pending": null, "paused-by": "nobody", "error": null });
    disk.server.wait_link(&running)?;
    let writers = DirectWriters {
        seed: 1,
        writers: 16,
        pages: 4,
    };
    let writing = disk.write(&writers)?;
    disk.server
        .qmp
        .wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
    let paused = json!({ "vm": "paused", "pending": null, "paused-by": "link" });
    disk.server.wait_link(&paused)?;
    ensure!(qemu_state(&mut disk.guest)? == "paused" && !writing.has_ended());
    disk.add_space()?;
    disk.server.qmp.execute("cont", Value::Null)?;
    disk.server.wait_link(&running)?;
    disk.check(&writing, &writers)?;

    // Somebody else resumes what the link has paused: found by asking.
    disk.take_space()?;
    disk.server.qmp.take_events(std::time::Duration::ZERO)?;
    let writing = disk.write(&writers)?;
    disk.server
        .qmp
        .wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
    disk.server.wait_link(&paused)?;
    disk.add_space()?;
    disk.server
        .qmp
        .log_mut()
        .push(testkit::LogEntry::Command("cont".to_owned()));
    disk.guest.qmp().execute("cont", Value::Null)?;
    disk.server.qmp.wait_event("RESUME", PATIENCE)?;
    disk.server.wait_link(&running)?;
    disk.check(&writing, &writers)?;
    // The VMM has no reset button that the link knows.
    let reset = disk.server.qmp.execute("system_reset", Value::Null);
    ensure!(reset.is_err_and(|error| error.to_string().contains("vmm-command")));
    disk.finish()
}
