//! `--config` and `--compat`.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::fs;

use common::{Place, refused, standfastd, stderr};
use serde_json::{Value, json};
use testkit::Qmp;

fn config(place: &Place) -> String {
    let (disk, qmp) = (place.name("e"), place.name("q"));
    let text = format!(
        r#"
[[objects]]
qom-type = "iothread"
id = "io"

[[blockdevs]]
driver = "quota"
node-name = "d"
limit = 1048576
file = {{ driver = "null-co", size = 1048576 }}

[[exports]]
type = "vhost-user-blk"
id = "vda"
node-name = "d"
writable = true
iothread = "io"
addr = {{ type = "unix", path = "{disk}" }}

[[chardevs]]
id = "q"
[chardevs.backend]
type = "socket"
data = {{ addr = {{ type = "unix", data = {{ path = "{qmp}" }} }} }}

[[monitors]]
chardev = "q"
"#
    );
    fs::write(place.file("c.toml"), text).unwrap();
    place.name("c.toml")
}

/// `x-werror` and `x-rerror` of the export, and what was said while it was made.
fn policies(place: &Place, args: &[&str]) -> (Value, Value, String) {
    let daemon = standfastd()
        .env("STANDFAST_LOG", "warn")
        .args(args)
        .socket(place.file("q"))
        .start()
        .unwrap();
    let mut qmp = Qmp::connect(place.file("q")).unwrap();
    let blocks = qmp.execute("query-block", Value::Null).unwrap();
    assert_eq!(blocks[0]["device"], "vda");
    let said = daemon.stderr();
    qmp.execute("quit", Value::Null).unwrap();
    (
        blocks[0]["x-werror"].clone(),
        blocks[0]["x-rerror"].clone(),
        said,
    )
}

/// Whoever puts us in the place of qemu-storage-daemon has to know that guests wait now.
#[test]
fn a_file_and_whose_defaults_count() {
    let place = Place::new();
    let config = config(&place);
    let (werror, rerror, said) = policies(&place, &["--config", &config]);
    assert_eq!((werror, rerror), (json!("enospc"), json!("report")));
    assert!(
        said.contains("export 'vda': a write that finds no space is held"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    let (werror, rerror, said) = policies(&place, &["--config", &config, "--compat=qsd"]);
    assert_eq!((werror, rerror), (json!("report"), json!("report")));
    assert_eq!(said, "");
    // What comes later over QMP has the same defaults.
    let add = json!({"type": "vhost-user-blk", "id": "vdb", "node-name": "d",
        "addr": {"type": "unix", "path": place.name("f")}});
    let _daemon = standfastd()
        .args(["--compat", "qsd", "--config", &config])
        .socket(place.file("q"))
        .start()
        .unwrap();
    let mut qmp = Qmp::connect(place.file("q")).unwrap();
    qmp.execute("block-export-add", add).unwrap();
    let blocks = qmp.execute("query-block", Value::Null).unwrap();
    let blocks = blocks.as_array().unwrap();
    assert!(
        blocks.iter().all(|block| block["x-werror"] == "report"),
        "{blocks:?}"
    );
}

#[test]
fn mistakes_name_their_place() {
    let place = Place::new();
    let path = place.name("c");
    for (text, desc) in [
        (
            "[[monitors]]\nchardev = 'x'",
            "monitors[0]: chardev \"x\" not found",
        ),
        (
            "[[blockdevs]]\ndriver = 'nosuch'",
            "blockdevs[0]: Parameter 'driver' does not accept value 'nosuch'",
        ),
        (
            "{\"nosuch\": []}",
            "'nosuch' is not known here, only objects, blockdevs, exports, chardevs, monitors",
        ),
    ] {
        fs::write(place.file("c"), text).unwrap();
        let said = stderr(&refused(&["--config", &path]));
        assert_eq!(said, format!("standfastd: --config {path}: {desc}\n"));
    }
    let said = stderr(&refused(&["--config", "/nonexistent"]));
    assert_eq!(
        said,
        "standfastd: --config /nonexistent: Could not open '/nonexistent': No such file or directory\n"
    );
    let said = stderr(&refused(&["--compat", "x"]));
    assert!(
        said.starts_with("standfastd: --compat x: Parameter 'compat' does not accept"),
        "{said}"
    );
}
