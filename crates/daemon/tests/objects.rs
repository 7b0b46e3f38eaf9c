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

#[test]
fn iothreads_are_told_of_and_changed_while_they_run() {
    let place = Place::new();
    let daemon = place
        .with_disk(standfastd())
        .args(["--object", "iothread,id=io1,poll-grow=3"])
        .start()
        .unwrap();
    let mut qmp = qmp(&place);
    let mut say = |command: &str, arguments| qmp.execute(command, arguments);
    let io2 = json!({ "qom-type": "iothread", "id": "io2", "thread-pool-max": 8 });
    say("object-add", io2).unwrap();

    let infos = say("query-iothreads", Value::Null).unwrap();
    let ids: Vec<_> = infos
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["id"])
        .collect();
    assert_eq!(ids, ["io1", "io2"]);
    let mut info = infos[0].clone();
    let task = format!("/proc/{}/task/{}/comm", daemon.pid(), info["thread-id"]);
    assert_eq!(std::fs::read_to_string(task).unwrap(), "io1\n");
    info.as_object_mut().unwrap().remove("thread-id");
    let expected = json!({
        "id": "io1", "poll-max-ns": 32768, "poll-grow": 3, "poll-shrink": 0, "aio-max-batch": 0,
        "x-engine": "io_uring",
    });
    assert_eq!(info, expected);

    let get = |path: &str, property: &str| json!({ "path": path, "property": property });
    let set = |path: &str, property: &str, value: Value| json!({ "path": path, "property": property, "value": value });
    let pool = "bad thread-pool-min/thread-pool-max values";
    let range = "poll-max-ns value must be in range [0, 9223372036854775807]";
    let wrong_type = "Invalid parameter type for 'poll-max-ns', expected: integer";
    for (property, value, error) in [
        ("poll-max-ns", json!(5), None),
        ("poll-max-ns", json!(-1), Some(range)),
        ("poll-max-ns", json!("x"), Some(wrong_type)),
        ("thread-pool-min", json!(3), None),
        ("thread-pool-max", json!(2), Some(pool)),
        ("thread-pool-max", json!(4), None),
        ("aio-max-batch", json!(7), None),
        (
            "type",
            json!("x"),
            Some("Property 'iothread.type' is not writable"),
        ),
        (
            "nosuch",
            json!(1),
            Some("Property 'iothread.nosuch' not found"),
        ),
    ] {
        let result = say("qom-set", set("/objects/io1", property, value.clone()));
        match error {
            None => {
                assert_eq!(result.unwrap(), json!({}));
                assert_eq!(say("qom-get", get("io1", property)).unwrap(), value);
            }
            Some(error) => assert_eq!(desc(result), error),
        }
    }
    assert_eq!(say("qom-get", get("io2", "thread-pool-max")).unwrap(), 8);
    assert_eq!(say("qom-get", get("io2", "poll-max-ns")).unwrap(), 32768);
    let infos = say("query-iothreads", Value::Null).unwrap();
    assert_eq!(
        (&infos[0]["poll-max-ns"], &infos[0]["aio-max-batch"]),
        (&json!(5), &json!(7))
    );

    let list = say("qom-list", json!({ "path": "/objects" })).unwrap();
    let expected = json!([
        { "name": "type", "type": "string" },
        { "name": "io1", "type": "child<iothread>" },
        { "name": "io2", "type": "child<iothread>" },
    ]);
    assert_eq!(list, expected);
    let of_type = say("qom-list-properties", json!({ "typename": "iothread" })).unwrap();
    assert_eq!(
        say("qom-list", json!({ "path": "/objects/io1" })).unwrap(),
        of_type
    );
    assert_eq!(
        say("qom-get", get("/objects", "io1")).unwrap(),
        "/objects/io1"
    );
    assert_eq!(
        say("qom-get", get("/objects/io1", "type")).unwrap(),
        "iothread"
    );

    say("object-del", json!({ "id": "io1" })).unwrap();
    let gone = say("qom-get", get("/objects/io1", "type")).expect_err("it is gone");
    let gone = gone.command().unwrap();
    assert_eq!(gone, ("DeviceNotFound", "Device '/objects/io1' not found"));
    drop(qmp);
    end(daemon);
}

#[test]
fn secrets_are_checked_when_they_are_added() {
    let place = Place::new();
    std::fs::write(place.file("key"), "!!").unwrap();
    let key = place.name("key");
    let daemon = place
        .with_disk(standfastd())
        .args(["--object", "secret,id=s0,data=a,,b"])
        .start()
        .unwrap();
    let mut qmp = qmp(&place);
    let mut say = |command: &str, arguments| qmp.execute(command, arguments);
    let secret = |members: Value| {
        let mut secret = json!({ "qom-type": "secret", "id": "s1" });
        secret
            .as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        secret
    };
    for (members, error) in [
        (json!({}), "Either 'file' or 'data' must be provided"),
        (
            json!({ "file": "/nowhere" }),
            "Unable to read /nowhere: Failed to open file \u{201c}/nowhere\u{201d}: No such file or directory",
        ),
        (
            json!({ "file": "/" }),
            "Unable to read /: Error reading file \u{201c}/\u{201d}: Is a directory",
        ),
        (
            json!({ "file": key, "format": "base64" }),
            "Base64 data contains invalid characters",
        ),
        (
            json!({ "data": "x", "keyid": "s1" }),
            "No secret with id 's1'",
        ),
        (
            json!({ "data": "x", "keyid": "s0" }),
            "Encrypted secrets ('keyid') are not supported",
        ),
    ] {
        assert_eq!(desc(say("object-add", secret(members))), error);
    }
    say("object-add", secret(json!({ "file": key }))).unwrap();
    let taken = "attempt to add duplicate property 's1' to object (type 'container')";
    assert_eq!(
        desc(say("object-add", secret(json!({ "data": "x" })))),
        taken
    );
    for (path, property, value) in [
        ("s0", "data", json!("a,b")),
        ("s0", "file", json!("")),
        ("s0", "format", json!("raw")),
        ("s1", "file", json!(key)),
    ] {
        let get = json!({ "path": path, "property": property });
        assert_eq!(say("qom-get", get).unwrap(), value);
    }
    say("object-del", json!({ "id": "s1" })).unwrap();
    let gone = "object 's1' not found";
    assert_eq!(desc(say("object-del", json!({ "id": "s1" }))), gone);
    drop(qmp);
    end(daemon);
}
