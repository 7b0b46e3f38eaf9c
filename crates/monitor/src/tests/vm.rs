//! The link to the VMM: objects, status, `cont`, `system_reset`.

use block::{HoldScope, VmOrder};
use serde_json::json;

use super::daemon::{Daemon, Fake};

const ENOSPC: i32 = 28;
const ADD: &str =
    r#"{"execute":"object-add","arguments":{"qom-type":"vmm-qemu","id":"vm0","path":"/q"}}"#;
const DELETE: &str = r#"{"execute":"object-del","arguments":{"id":"vm0"}}"#;
const RESUME: VmOrder = VmOrder::Resume { force: false };

async fn daemon() -> Daemon {
    let daemon = Daemon::new().await;
    daemon.node("n", Fake::new("file"));
    daemon.export("e", "n", HoldScope::Vm).await;
    daemon
}

#[tokio::test]
async fn a_link_is_told_and_shown() {
    let mut daemon = daemon().await;
    let vm0 = daemon.vm0();
    let mut client = daemon.client().await;
    assert_eq!(client.result("query-status").await.get("x-vmm"), None);
    let reset = client.error(r#"{"execute":"system_reset"}"#).await;
    assert!(
        reset.starts_with("There is no link to a VMM that could reset the VM: add one with"),
        "{reset}"
    );

    assert_eq!(client.command(ADD).await, json!({"return": {}}));
    let x_vmm = &client.result("query-status").await["x-vmm"];
    let expected = json!({
        "id": "vm0", "type": "vmm-qemu", "state": "connected", "vm": "running",
        "paused-by": "nobody",
    });
    assert_eq!(*x_vmm, expected);

    daemon.fail("e", ENOSPC).await;
    assert_eq!(client.events(2).await, ["BLOCK_IO_ERROR", "STOP"]);
    let x_vmm = &client.result("query-status").await["x-vmm"];
    assert_eq!(
        (&x_vmm["pending"], &x_vmm["vm"]),
        (&json!("pause"), &json!("running"))
    );
    vm0.act();
    // Nothing more for what fails then.
    daemon.fail("e", ENOSPC).await;
    assert_eq!(client.events(1).await, ["BLOCK_IO_ERROR"]);
    let x_vmm = &client.result("query-status").await["x-vmm"];
    assert_eq!(
        (&x_vmm["paused-by"], &x_vmm["vm"]),
        (&json!("link"), &json!("paused"))
    );
    assert_eq!(vm0.orders(), [VmOrder::Pause]);

    // cont is applied when it has returned; what the VMM makes of it is shown.
    client.send(r#"{"execute":"cont"}"#).await;
    assert_eq!(client.events(1).await, ["RESUME"]);
    assert_eq!(client.receive().await, json!({"return": {}}));
    let status = client.result("query-status").await;
    assert_eq!(
        (&status["status"], &status["x-vmm"]["pending"]),
        (&json!("running"), &json!("resume"))
    );
    vm0.lose("connection refused");
    let x_vmm = &client.result("query-status").await["x-vmm"];
    assert_eq!(
        (&x_vmm["state"], &x_vmm["error"]),
        (&json!("down"), &json!("connection refused"))
    );
    assert_eq!(
        client.hmp("info status").await,
        "VM status: running\r\nVMM link: vm0 (vmm-qemu): down, VM paused, paused by link, \
         pending: resume\r\n    connection refused\r\n"
    );
    assert_eq!(vm0.orders(), [VmOrder::Pause, RESUME]);
}

#[tokio::test]
async fn cont_may_force() {
    let daemon = daemon().await;
    let vm0 = daemon.vm0();
    let mut client = daemon.client().await;
    client.command(ADD).await;
    for (arguments, force) in [
        (json!({}), false),
        (json!({"x-force": false}), false),
        (json!({"x-force": true}), true),
    ] {
        // While all runs: the link decides whether there is something to do.
        let cont = json!({"execute": "cont", "arguments": arguments});
        let reply = client.command(&cont.to_string()).await;
        assert_eq!(reply, json!({"return": {}}));
        assert_eq!(vm0.orders().last(), Some(&VmOrder::Resume { force }));
    }
    let wrong = client
        .error(r#"{"execute":"cont","arguments":{"x-force":1}}"#)
        .await;
    assert_eq!(
        wrong,
        "Invalid parameter type for 'x-force', expected: boolean"
    );
    assert_eq!(client.hmp("cont").await, "");
    assert_eq!(vm0.orders().len(), 4);
    assert_eq!(vm0.orders()[3], RESUME);
}

#[tokio::test]
async fn stop_pauses_and_a_link_that_comes_late_is_told() {
    for late in [false, true] {
        let mut daemon = daemon().await;
        let vm0 = daemon.vm0();
        let mut client = daemon.client().await;
        if !late {
            client.command(ADD).await;
        }
        client.send(r#"{"execute":"stop"}"#).await;
        assert_eq!(client.events(1).await, ["STOP"]);
        client.receive().await;
        // Another reason to be stopped is no order.
        daemon.fail("e", ENOSPC).await;
        client.events(1).await;
        if late {
            client.command(ADD).await;
        }
        assert_eq!(vm0.orders(), [VmOrder::Pause], "late: {late}");
    }
    let mut daemon = daemon().await;
    daemon.fail("e", ENOSPC).await;
    let mut client = daemon.client().await;
    client.command(ADD).await;
    assert_eq!(daemon.vm0().orders(), [VmOrder::Pause]);
}

#[tokio::test]
async fn a_reset_is_forwarded_and_drops_nothing_itself() {
    let mut daemon = daemon().await;
    let vm0 = daemon.vm0();
    let mut client = daemon.client().await;
    client.command(ADD).await;
    daemon.fail("e", ENOSPC).await;
    client.events(2).await;
    let reply = client.command(r#"{"execute":"system_reset"}"#).await;
    assert_eq!(reply, json!({"return": {}}));
    assert_eq!(client.hmp("system_reset").await, "");
    assert_eq!(vm0.resets(), 2);
    let held = client.result("x-query-held").await;
    assert_eq!(held.as_array().unwrap().len(), 1);
    assert_eq!(client.result("query-status").await["status"], "io-error");
    vm0.lose("no route");
    let refused = client.error(r#"{"execute":"system_reset"}"#).await;
    assert_eq!(refused, "The VM cannot be reset: no route");
    assert_eq!(
        client.hmp("system_reset").await,
        "Error: The VM cannot be reset: no route\r\n"
    );
}

#[tokio::test]
async fn links_come_and_go() {
    let mut daemon = daemon().await;
    let vm0 = daemon.vm0();
    let mut client = daemon.client().await;
    assert_eq!(client.error(DELETE).await, "object 'vm0' not found");
    client.command(ADD).await;
    let second = client.error(&ADD.replace("vm0", "vm1")).await;
    assert_eq!(
        second,
        "Object 'vm1' cannot be added: the daemon has a link to a VMM already, object 'vm0'; one \
         daemon serves one VM"
    );
    // Neither while the VM is to be paused nor while it is.
    let in_use = "object 'vm0' is in use, can not be deleted: it has paused the VM, which nobody \
                  would resume; use 'cont' first";
    daemon.fail("e", ENOSPC).await;
    client.events(2).await;
    assert_eq!(client.error(DELETE).await, in_use);
    vm0.act();
    assert_eq!(client.error(DELETE).await, in_use);
    assert!(client.result("query-status").await["x-vmm"].is_object());
    client.send(r#"{"execute":"cont"}"#).await;
    client.events(1).await;
    client.receive().await;
    assert_eq!(client.error(DELETE).await, in_use);
    vm0.act();
    assert_eq!(client.command(DELETE).await, json!({"return": {}}));
    assert!(vm0.is_closed());
    let orders = vm0.orders();
    daemon.fail("e", ENOSPC).await;
    client.events(2).await;
    assert_eq!(vm0.orders(), orders);
    assert_eq!(client.result("query-status").await.get("x-vmm"), None);
    assert_eq!(
        client.command(&ADD.replace("vm0", "vm1")).await,
        json!({"return": {}})
    );
}

#[tokio::test]
async fn a_link_that_is_down_can_go() {
    let mut daemon = daemon().await;
    let vm0 = daemon.vm0();
    let mut client = daemon.client().await;
    client.command(ADD).await;
    daemon.fail("e", ENOSPC).await;
    client.events(2).await;
    vm0.lose("no such file");
    assert_eq!(client.command(DELETE).await, json!({"return": {}}));
    assert!(vm0.is_closed());
}

#[tokio::test]
async fn object_commands_check_their_arguments() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    for (arguments, desc) in [
        (json!({"id": "vm0"}), "Parameter 'qom-type' is missing"),
        (
            json!({"qom-type": "vmm-qemu", "id": "vm0", "path": ""}),
            "Parameter 'path' expects the path of the VMM's socket",
        ),
        (
            json!({"qom-type": "vmm-command", "id": "vm0", "pause": [], "resume": ["r"]}),
            "Parameter 'pause' is an empty list: its first element must be the program",
        ),
        (
            json!({"qom-type": "iothread", "id": "io1"}),
            "no more threads",
        ),
        (
            json!({"qom-type": "nosuch", "id": "s"}),
            "Parameter 'qom-type' does not accept value 'nosuch'",
        ),
    ] {
        let add = json!({"execute": "object-add", "arguments": arguments});
        assert_eq!(client.error(&add.to_string()).await, desc);
    }
}

#[tokio::test]
async fn people_add_and_delete_objects() {
    let daemon = daemon().await;
    let mut client = daemon.client().await;
    for (line, printed) in [
        (
            "object_add",
            "object_add: string expected\r\nTry \"help object_add\" for more information\r\n",
        ),
        (
            "object_add vmm-qemu,id=vm0",
            "Error: Parameter 'path' is missing\r\n",
        ),
        (
            r#"object_add vmm-command,id=vm0,pause=["a",,"b c"],resume=["d"]"#,
            "",
        ),
        (
            "info status",
            "VM status: running\r\nVMM link: vm0 (vmm-qemu): connected, VM running\r\n",
        ),
        ("object_del vm1", "Error: object 'vm1' not found\r\n"),
        (
            "object_del",
            "object_del: string expected\r\nTry \"help object_del\" for more information\r\n",
        ),
        (
            "object_del vm0 x",
            "object_del: extraneous characters at the end of line\r\n\
             Try \"help object_del\" for more information\r\n",
        ),
        ("object_del vm0", ""),
        ("info status", "VM status: running\r\n"),
    ] {
        assert_eq!(client.hmp(line).await, printed, "{line}");
    }
}
