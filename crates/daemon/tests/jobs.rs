//! Jobs: images are made in the background.
#![allow(
    clippy::expect_used,
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use common::{PATIENCE, Place, standfastd};
use serde_json::{Value, json};
use testkit::{FuseFile, FuseOp, Qmp};

fn desc(result: Result<Value, testkit::QmpError>) -> String {
    let error = result.expect_err("it was not refused");
    let (class, desc) = error.command().unwrap();
    assert_eq!(class, "GenericError");
    desc.to_owned()
}

/// The states that a job goes through up to `last`.
fn states(qmp: &mut Qmp, id: &str, last: &str) -> Vec<String> {
    let mut states = Vec::new();
    while states.last().is_none_or(|state| state != last) {
        let event = qmp.wait_event("JOB_STATUS_CHANGE", PATIENCE).unwrap();
        assert_eq!(event.data["id"], id);
        states.push(event.data["status"].as_str().unwrap().to_owned());
    }
    states
}

#[test]
fn a_file_is_made_and_its_job_dismissed() {
    let place = Place::new();
    let mut daemon = place.with_disk(standfastd()).start().unwrap();
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    let create = |id: &str, name: &str, size: u64| {
        let options = json!({ "driver": "file", "filename": place.name(name), "size": size });
        json!({ "job-id": id, "options": options })
    };
    qmp.execute("blockdev-create", create("j0", "new.img", 1 << 20))
        .unwrap();
    let all = ["created", "running", "waiting", "pending", "concluded"];
    assert_eq!(states(&mut qmp, "j0", "concluded"), all);
    assert_eq!(place.file("new.img").metadata().unwrap().len(), 1 << 20);
    let nowhere = create("j1", "nowhere/new.img", 512);
    qmp.execute("blockdev-create", nowhere).unwrap();
    let failed = ["created", "running", "aborting", "concluded"];
    assert_eq!(states(&mut qmp, "j1", "concluded"), failed);

    let again = create("j1", "new.img", 512);
    let taken = "Job ID 'j1' already in use";
    assert_eq!(desc(qmp.execute("blockdev-create", again)), taken);
    let bad = create("1j", "new.img", 512);
    assert_eq!(
        desc(qmp.execute("blockdev-create", bad)),
        "Invalid job ID '1j'"
    );
    let throttle = json!({ "job-id": "j2", "options": { "driver": "throttle" } });
    let nothing = "Driver does not support blockdev-create";
    assert_eq!(desc(qmp.execute("blockdev-create", throttle)), nothing);

    let job = |id: &str| {
        json!({ "id": id, "type": "create", "status": "concluded", "current-progress": 1,
            "total-progress": 1 })
    };
    let mut second = job("j1");
    let error = format!(
        "Could not create '{}': No such file or directory",
        place.name("nowhere/new.img")
    );
    second["error"] = error.into();
    let jobs = qmp.execute("query-jobs", Value::Null).unwrap();
    assert_eq!(jobs, json!([second, job("j0")]));
    assert_eq!(
        qmp.execute("query-block-jobs", Value::Null).unwrap(),
        json!([])
    );

    for id in ["j0", "j1"] {
        qmp.execute("job-dismiss", json!({ "id": id })).unwrap();
        assert_eq!(states(&mut qmp, id, "null"), ["null"]);
        let gone = "Job not found";
        assert_eq!(desc(qmp.execute("job-dismiss", json!({ "id": id }))), gone);
    }
    drop(qmp);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

#[test]
fn storage_that_hangs_keeps_one_job_and_nobody_else() {
    let place = Place::new();
    let fuse = FuseFile::new(4096).expect("FUSE");
    let mut daemon = place.with_disk(standfastd()).start().unwrap();
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    let options = json!({ "driver": "file", "filename": fuse.path(), "size": 4096,
        "preallocation": "full" });
    fuse.hang(FuseOp::Write, true);
    let create = json!({ "job-id": "j", "options": options });
    qmp.execute("blockdev-create", create).unwrap();
    while fuse.count(FuseOp::Write) == 0 {
        std::thread::yield_now();
    }
    let jobs = qmp.execute("query-jobs", Value::Null).unwrap();
    assert_eq!(
        (&jobs[0]["status"], &jobs[0]["current-progress"]),
        (&json!("running"), &json!(0))
    );
    let job = json!({ "id": "j" });
    let running = "Job 'j' in state 'running' cannot accept command verb 'dismiss'";
    assert_eq!(desc(qmp.execute("job-dismiss", job.clone())), running);
    qmp.execute("job-cancel", job).unwrap();
    fuse.hang(FuseOp::Write, false);
    let all = ["created", "running", "aborting", "concluded"];
    assert_eq!(states(&mut qmp, "j", "concluded"), all);
    let jobs = qmp.execute("query-jobs", Value::Null).unwrap();
    assert_eq!(jobs[0]["error"], "Operation canceled");
    drop(qmp);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

#[test]
fn a_transaction_that_aborts() {
    let place = Place::new();
    let mut daemon = place.with_disk(standfastd()).start().unwrap();
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    let mut say = |actions: Value| qmp.execute("transaction", json!({ "actions": actions }));
    assert_eq!(say(json!([])).unwrap(), json!({}));
    for (actions, error) in [
        (
            json!([{ "type": "abort", "data": {} }]),
            "Transaction aborted using Abort action",
        ),
        (
            json!([{ "type": "nosuch", "data": {} }]),
            "Parameter 'type' does not accept value 'nosuch'",
        ),
        (
            json!([{ "type": "abort" }]),
            "Parameter 'actions[0].data' is missing",
        ),
        (
            json!([{ "type": "abort", "data": { "x": 1 } }]),
            "Parameter 'actions[0].data.x' is unexpected",
        ),
    ] {
        assert_eq!(desc(say(actions)), error);
    }
    drop(qmp);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}
