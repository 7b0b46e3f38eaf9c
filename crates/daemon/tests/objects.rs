//! Objects of a running daemon, and links on the command line.
#![allow(
    clippy::expect_used,
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use common::{PATIENCE, Place, refused, standfastd, stderr};
use serde_json::{Value, json};
use testkit::{Daemon, Qmp};

fn qmp(place: &Place) -> Qmp {
    Qmp::connect(place.file("qmp.sock")).unwrap()
}

fn desc(result: Result<Value, testkit::QmpError>) -> String {
    let error = result.expect_err("it was not refused");
    let (class, desc) = error.command().unwrap();
    assert_eq!(class, "GenericError");
    desc.to_owned()
}

fn end(mut daemon: Daemon) {
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

#[test]
fn iothreads_come_and_go_unless_an_export_uses_them() {
    let place = Place::new();
    let daemon = place
        .with_disk(standfastd())
        .args([
            "--object",
            "iothread,id=used",
            "--object",
            "iothread,id=idle",
        ])
        .args(["--blockdev", "null-co,node-name=n0,size=1048576"])
        .args([
            "--export",
            &format!(
                "vhost-user-blk,id=vdb,node-name=n0,iothread=used,addr.type=unix,addr.path={}",
                place.name("vdb.sock")
            ),
        ])
        .start()
        .unwrap();
    let mut qmp = qmp(&place);
    let mut say = |command: &str, arguments| qmp.execute(command, arguments);
    let iothread = |id: &str| json!({ "qom-type": "iothread", "id": id, "poll-max-ns": 0 });

    let taken = "attempt to add duplicate property 'idle' to object (type 'container')";
    assert_eq!(desc(say("object-add", iothread("idle"))), taken);
    let in_use = "object 'used' is in use, can not be deleted";
    assert_eq!(desc(say("object-del", json!({ "id": "used" }))), in_use);
    for _ in 0..2 {
        assert_eq!(
            say("object-del", json!({ "id": "idle" })).unwrap(),
            json!({})
        );
        let gone = "object 'idle' not found";
        assert_eq!(desc(say("object-del", json!({ "id": "idle" }))), gone);
        assert_eq!(say("object-add", iothread("idle")).unwrap(), json!({}));
    }
    drop(qmp);
    end(daemon);
}

#[test]
fn links_come_and_go_whether_or_not_the_vmm_is_there() {
    let place = Place::new();
    let socket = place.name("vmm.sock");
    // Behind the exports: the order does not matter.
    let daemon = place
        .with_disk(standfastd())
        .args(["--object", &format!("vmm-qemu,id=vm0,path={socket}")])
        .start()
        .unwrap();
    let mut qmp = qmp(&place);
    let mut say = |command: &str, arguments| qmp.execute(command, arguments);
    common::eventually("the link tells what is wrong", || {
        let status = say("query-status", Value::Null).unwrap();
        let error = status["x-vmm"]["error"].as_str().unwrap_or_default();
        status["x-vmm"]["state"] == "down" && error.contains(&socket)
    });
    let link = |id: &str| json!({ "qom-type": "vmm-firecracker", "id": id, "path": socket });
    let taken = "attempt to add duplicate property 'vm0' to object (type 'container')";
    assert_eq!(desc(say("object-add", link("vm0"))), taken);
    let iothread = json!({ "qom-type": "iothread", "id": "vm0" });
    assert_eq!(desc(say("object-add", iothread)), taken);
    let second = "Object 'vm1' cannot be added: the daemon has a link to a VMM already, object \
                  'vm0'; one daemon serves one VM";
    assert_eq!(desc(say("object-add", link("vm1"))), second);
    for command in ["stop", "cont"] {
        say(command, Value::Null).unwrap();
    }
    desc(say("system_reset", Value::Null));

    assert_eq!(
        say("object-del", json!({ "id": "vm0" })).unwrap(),
        json!({})
    );
    let commands = json!({ "qom-type": "vmm-command", "id": "vm1",
        "pause": ["/bin/true"], "resume": "[\"/bin/true\"]" });
    assert_eq!(say("object-add", commands).unwrap(), json!({}));
    let status = say("query-status", Value::Null).unwrap();
    assert_eq!(status["x-vmm"]["type"], "vmm-command");
    drop(qmp);
    end(daemon);
}

#[test]
fn the_command_line_takes_one_link() {
    let link = |id: &str| format!("vmm-qemu,id={id},path=/nowhere/{id}.sock");
    for (args, text) in [
        (
            [link("vm0"), link("vm1")],
            "--object vmm-qemu,id=vm1,path=/nowhere/vm1.sock: Object 'vm1' cannot be added: the \
             daemon has a link to a VMM already, object 'vm0'; one daemon serves one VM",
        ),
        (
            ["iothread,id=vm0".to_owned(), link("vm0")],
            "--object vmm-qemu,id=vm0,path=/nowhere/vm0.sock: attempt to add duplicate property \
             'vm0' to object (type 'container')",
        ),
        (
            [
                link("vm0"),
                "vmm-command,id=vm1,pause=[],resume.0=a".to_owned(),
            ],
            "--object vmm-command,id=vm1,pause=[],resume.0=a: Parameter 'pause' is an empty list: \
             its first element must be the program",
        ),
    ] {
        let output = refused(&["--object", &args[0], "--object", &args[1]]);
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.contains(text), "{said}");
    }
}
