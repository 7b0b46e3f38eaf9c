//! File names are bytes. A name that is not UTF-8 could not be given: the daemon said "an argument is
//! not valid UTF-8" and ended.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{PATIENCE, Place, eventually, standfastd};
use frontend::{Disk, Options};
use qapi::os_text;
use serde_json::{Value, json};
use testkit::Qmp;

/// The path of a file whose name is no text.
fn strange(place: &Place, name: &[u8]) -> PathBuf {
    place.path().join(OsStr::from_bytes(name))
}

fn option(before: &str, path: &Path, after: &str) -> OsString {
    let mut bytes = before.as_bytes().to_vec();
    bytes.extend_from_slice(path.as_os_str().as_bytes());
    bytes.extend_from_slice(after.as_bytes());
    OsString::from_vec(bytes)
}

#[test]
fn names_that_are_no_text_work_everywhere() {
    let place = Place::new();
    let file = |name: &[u8]| strange(&place, name);
    let (image, disk, qmp) = (file(b"d\xff.img"), file(b"d\xfe.sock"), file(b"q\xfd.sock"));
    let (pid, state) = (file(b"pid\x80"), file(b"state\xc3"));
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let args = [
        "--blockdev".into(),
        option("driver=file,node-name=disk0,filename=", &image, ""),
        "--export".into(),
        option(
            "vhost-user-blk,id=vda,node-name=disk0,addr.type=unix,addr.path=",
            &disk,
            "",
        ),
        "--chardev".into(),
        option("socket,id=qmp,path=", &qmp, ",server=on,wait=off"),
        "--monitor=qmp".into(),
        "--pidfile".into(),
        pid.clone().into(),
        "--state-dir".into(),
        state.clone().into(),
    ];
    let mut daemon = standfastd().args(&args).start().unwrap();
    daemon.wait_for_stderr("is ready", PATIENCE).unwrap();
    eventually("the pid file", || pid.exists());
    assert!(state.join("standfastd.state").exists());
    drop(Disk::connect(&disk, Options::default()).unwrap());
    let mut monitor = Qmp::connect(&qmp).unwrap();
    let nodes = monitor.execute("query-named-block-nodes", Value::Null);
    let shown = nodes.unwrap()[0]["file"].as_str().unwrap().to_owned();
    assert_eq!(
        shown,
        format!("{}/d\u{10ffff}.img", place.name("")).replace("//", "/")
    );
    // And in what a monitor says.
    let vmm = file(b"vmm\xfc.sock");
    let listener = UnixListener::bind(&vmm).unwrap();
    let path = os_text::from_os(vmm.as_os_str());
    let link = json!({ "qom-type": "vmm-qemu", "id": "vm0", "path": path });
    monitor.execute("object-add", link).unwrap();
    listener.accept().unwrap();
    assert!(daemon.terminate(PATIENCE).unwrap().success());
    assert!(!disk.exists() && !qmp.exists() && !pid.exists());
}

#[test]
fn an_error_shows_the_name_as_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_standfastd"))
        .args([
            OsStr::new("--blockdev"),
            OsStr::from_bytes(b"file,node-name=n,filename=/nonexistent/\xff"),
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected = b"Could not open '/nonexistent/\xff': No such file or directory";
    let found = output.stderr.windows(expected.len());
    assert!(
        found.into_iter().any(|part| part == expected),
        "{}",
        output.stderr.escape_ascii()
    );
}
