//! What the programs of `vmm-command` are started with: they had every socket that the daemon was
//! started with, and kept it open after the daemon's end.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use common::{Place, eventually};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};
use testkit::Qmp;

/// The daemon, killed when the test ends.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The only test of its program: children of others would inherit the socket as well.
#[test]
fn programs_inherit_no_descriptor_and_the_limit_as_it_was() {
    let place = Place::new();
    let listener = UnixListener::bind(place.file("vda.sock")).unwrap();
    let file = std::fs::File::create(place.file("unused")).unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    let report = place.name("report");
    // Whole when it has its name.
    let script = format!(
        "{{ ulimit -Sn; for fd in 0 1 2 3 4 5 6 7 8 9 {} {}; do readlink /proc/$$/fd/$fd; done; }} \
         >{report}.new; mv {report}.new {report}",
        listener.as_raw_fd(),
        file.as_raw_fd()
    );
    let object = json!({ "qom-type": "vmm-command", "id": "vm0",
        "pause": ["sh", "-c", script], "resume": ["true"] });
    let daemon = Command::new("sh")
        .args(["-c", "ulimit -Sn 200 && exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_standfastd"))
        .args(["--blockdev", "null-co,node-name=n"])
        .arg("--export")
        .arg(format!(
            "vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str={}",
            listener.as_raw_fd()
        ))
        .args(["--object", &object.to_string()])
        .arg("--chardev")
        .arg(format!(
            "socket,id=qmp,path={},server=on,wait=off",
            place.name("qmp.sock")
        ))
        .args(["--monitor", "qmp"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Child(daemon);
    let mut qmp = None;
    eventually("the monitor", || {
        qmp = Qmp::connect(place.file("qmp.sock")).ok();
        qmp.is_some()
    });
    qmp.unwrap().execute("stop", Value::Null).unwrap();
    eventually("the program", || place.file("report").exists());

    let report = std::fs::read_to_string(place.file("report")).unwrap();
    let mut lines = report.lines();
    assert_eq!(lines.next(), Some("200"), "{report}");
    let others = lines.filter(|name| {
        !["/dev/null", "pipe:"]
            .iter()
            .any(|known| name.starts_with(known))
            && !name.ends_with("/report.new")
    });
    assert_eq!(others.collect::<Vec<_>>(), [""; 0], "{report}");

    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.0.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let numbers: Vec<_> = line.unwrap().split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "the soft limit is the hard one");
    assert_ne!(numbers[0], "200", "the machine has a higher hard limit");
}
