//! What a daemon is told by the state that another one has left: it waits for nodes and exports that are not there, and no
//! start that fails loses it.

mod harness;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use block::state_file::{self, FILE_NAME};
use block::{RunState, SavedState};
use harness::state::{plain, save};
use harness::{MIB, PATIENCE, Server, Setup, eventually, sparse};
use serde_json::{Value, json};

/// A daemon that was started once without the node forgot that it has lost data; the next one with it
/// said "done" to the flush.
#[test]
fn a_loss_waits_for_a_node_that_is_left_out_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let lost = SavedState {
        losses: vec![block::SavedLoss {
            node: "disk1".to_owned(),
            errno: 28,
            number: 0,
        }],
        ..SavedState::default()
    };
    save(dir.path(), &state_file::boot_id()?, &lost)?;
    let said = "node 'disk1' does not exist, or is no image any more";
    let server = plain(dir.path())?.start()?;
    server.daemon.wait_for_stderr(said, PATIENCE)?;
    server.end()?;

    // Neither does a node of that name take it that has nothing to flush.
    let null = json!({ "driver": "null-co", "node-name": "disk1" });
    let server = plain(dir.path())?.blockdev(&null).start()?;
    server.daemon.wait_for_stderr(said, PATIENCE)?;
    server.end()?;

    let image = dir.path().join("image");
    sparse(&image, MIB)?;
    let file = json!({ "driver": "file", "node-name": "disk1", "filename": &image });
    let with_file = || -> Result<Server> {
        let setup = plain(dir.path())?.blockdev(&file);
        setup.export("vdb", "disk1", json!({})).start()
    };
    let mut server = with_file()?;
    server.daemon.wait_for_stderr("is ready", PATIENCE)?;
    ensure!(!server.daemon.stderr().contains(said));
    let refused = server.qmp.execute("cont", Value::Null);
    let text = refused.expect_err("cont must be refused").to_string();
    ensure!(text.contains("'disk1' has lost data"), "{text}");
    let disk1 = json!({ "node-name": "disk1" });
    server.qmp.execute("x-node-accept-loss", disk1)?;
    server.end()?;
    let mut server = with_file()?;
    let known = server.qmp.execute("cont", Value::Null);
    ensure!(known.is_ok(), "what was accepted is back");
    server.finish()
}
/// A state in which "vdb" on "disk1" has an incident, and the VM waits for it.
fn state_of_vdb() -> SavedState {
    let at = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    SavedState {
        run_state: RunState::IoError,
        backends: vec![block::SavedBackend {
            device: "vdb".to_owned(),
            node: "disk1".to_owned(),
            io_status: block::IoStatus::restored(true, block::Status::Nospace),
            incidents: 7,
            incident: Some(block::Incident {
                number: 7,
                since: at,
                cause: Some(block::Cause::of_errno(28)),
                node: Some("file1".into()),
            }),
            stats: block::BackendStats {
                holds: 77,
                ..block::BackendStats::default()
            },
            ..block::SavedBackend::default()
        }],
        ..SavedState::default()
    }
}

/// The daemon goes on with what was saved of "vdb", after whatever was in between.
fn finds_vdb(dir: &std::path::Path, image: &std::path::Path) -> Result<()> {
    let file = json!({ "driver": "file", "node-name": "disk1", "filename": image });
    let setup = plain(dir)?.blockdev(&file);
    let mut server = setup.export("vdb", "disk1", json!({})).start()?;
    ensure!(server.run_state()? == "io-error");
    let block = server.block("vdb")?;
    ensure!(
        block["x-incident"] == 7 && block["io-status"] == "nospace",
        "{block}"
    );
    ensure!(server.stats("vdb")?["x-holds"] == 77);
    let stderr = server.daemon.stderr();
    ensure!(!stderr.contains("is kept"), "{stderr}");
    server.finish()
}

/// Today's state file of `dir`.
fn stored(dir: &std::path::Path) -> Result<state_file::Stored> {
    let content = std::fs::read(dir.join(FILE_NAME))?;
    state_file::parse(&content)?.context("a state")
}

#[test]
fn what_is_known_of_an_export_waits_through_daemons_without_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    sparse(&image, MIB)?;
    save(dir.path(), &state_file::boot_id()?, &state_of_vdb())?;
    for _ in 0..2 {
        let mut server = plain(dir.path())?.start()?;
        let said = "is kept until they are added: 'vdb' on 'disk1'";
        server.daemon.wait_for_stderr(said, PATIENCE)?;
        ensure!(server.run_state()? == "io-error");
        server.daemon.kill()?;
    }
    finds_vdb(dir.path(), &image)?;

    // It does not hold the VM: a new client ends that, and so does `cont`.
    save(dir.path(), &state_file::boot_id()?, &state_of_vdb())?;
    let mut server = plain(dir.path())?.start()?;
    let disk = server.disk("vda")?;
    server.qmp.wait_event("RESUME", PATIENCE)?;
    ensure!(server.run_state()? == "running");
    drop(disk);
    server.end()?;
    save(dir.path(), &state_file::boot_id()?, &state_of_vdb())?;
    let mut server = plain(dir.path())?.start()?;
    server.qmp.execute("cont", Value::Null)?;
    server.end()?;
    let vdb = stored(dir.path())?.state.backends;
    let vdb = vdb.iter().find(|saved| saved.device == "vdb");
    let vdb = vdb.context("kept")?;
    ensure!(vdb.incident.is_none() && vdb.incidents == 7, "{vdb:?}");
    Ok(())
}

/// Neither `kill -9` in the middle of a start, nor a signal then, nor a start that fails loses anything.
#[test]
fn a_start_that_does_not_end_leaves_the_state_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    sparse(&image, MIB)?;
    let (state, boot) = (dir.path().join("state"), state_file::boot_id()?);
    save(&state, &boot, &state_of_vdb())?;
    let null = "driver=null-co,node-name=disk0,size=1048576";
    let file = format!("driver=file,node-name=disk1,filename={}", image.display());
    let export = |id: &str, node: &str| {
        let socket = dir.path().join(format!("{id}.sock"));
        format!(
            "type=vhost-user-blk,id={id},node-name={node},writable=on,addr.type=unix,addr.path={}",
            socket.display()
        )
    };
    let (vda, vdb) = (export("vda", "disk0"), export("vdb", "disk1"));
    let args = |last: &[&str]| {
        let first = ["--state-dir", state.to_str().unwrap_or_default()];
        let first = first
            .into_iter()
            .chain(["--blockdev", null, "--export", &vda]);
        let all = first.chain(["--blockdev", &file, "--export", &vdb]);
        let all = all.chain(last.iter().copied());
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = |what: &str| -> Result<()> {
        let found = stored(&state)?;
        let SavedState {
            run_state,
            backends,
            ..
        } = found.state;
        let vdb: Vec<_> = (backends.into_iter())
            .filter(|b| b.device == "vdb")
            .collect();
        ensure!(run_state == RunState::IoError, "{what}: {run_state:?}");
        ensure!(vdb == state_of_vdb().backends, "{what}: {vdb:?}");
        Ok(())
    };

    let fails = |daemon: &mut testkit::Daemon, why: &str| -> Result<()> {
        let status = daemon.wait(PATIENCE)?;
        let stderr = daemon.stderr();
        ensure!(
            status.code() == Some(1) && stderr.contains(why),
            "{status}, {stderr}"
        );
        Ok(())
    };

    // It waits for the lock of the image, which another daemon has: vda is there, vdb is not.
    let plain_export = export("other", "disk1");
    let other = Setup::new()?
        .option("--blockdev", &file)
        .option("--export", &plain_export);
    let other = other.start()?;
    for end in ["kill -9", "SIGTERM"] {
        let generation = stored(&state)?.generation;
        let mut daemon = harness::standfastd(&args(&[])).start()?;
        eventually("vda is made, and saved", || {
            let found = stored(&state)?;
            let vda = |saved: &block::SavedBackend| saved.device == "vda";
            Ok(found.generation > generation
                && found.state.backends.iter().any(vda)
                && daemon.stderr().contains("lock"))
        })?;
        before(end)?;
        match end {
            "SIGTERM" => ensure!(daemon.terminate(PATIENCE)?.success()),
            _ => daemon.kill().map(drop)?,
        }
        before(end)?;
    }
    other.finish()?;

    // Everything is made, and the last option is wrong: what vdb has claimed is its own still.
    let failing = args(&[
        "--blockdev",
        "driver=file,node-name=no,filename=/nonexistent/image",
    ]);
    let mut daemon = harness::standfastd(&failing).start()?;
    fails(&mut daemon, "/nonexistent/image")?;
    before("a start that fails")?;
    // The export itself cannot be made.
    let mut failing = args(&[]);
    let wrong = format!("{vdb},iothread=nobody");
    failing.last_mut().context("an export")?.clone_from(&wrong);
    let mut daemon = harness::standfastd(&failing).start()?;
    fails(&mut daemon, "nobody")?;
    before("an export that fails")?;
    finds_vdb(&state, &image)
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
