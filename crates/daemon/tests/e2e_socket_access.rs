//! Who may connect: mode, owner and group of the sockets. As root, as only root may give a file away.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::{Place, refused, standfastd, stderr};

/// Nobody has these numbers.
const USER: u32 = 61_234;
const GROUP: u32 = 61_235;

/// Connects as somebody else.
fn connect_as(user: u32, group: u32, path: &Path) -> io::Result<UnixStream> {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        // SAFETY: these change what the calling thread may do with files, and nothing else; it ends
        // below.
        unsafe {
            libc::setfsgid(group);
            libc::setfsuid(user);
        }
        UnixStream::connect(path)
    });
    thread.join().unwrap()
}

/// A VMM often runs as another user than the daemon. Its sockets were for the daemon's user alone,
/// whatever the umask; an ACL was gone after each restart.
#[test]
fn a_vmm_of_another_user_can_connect_and_nobody_else() {
    let place = Place::new();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path(), open).unwrap();
    let export = format!(
        "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},addr.mode=0660,addr.group={GROUP}",
        place.name("vda.sock")
    );
    let chardev = format!(
        "socket,id=c,path={},server=on,wait=off,mode=640,owner={USER},group=root",
        place.name("qmp.sock")
    );
    let _daemon = standfastd()
        .args(["--blockdev", "null-co,node-name=n", "--export", &export])
        .args(["--chardev", &chardev, "--monitor", "c"])
        .socket(place.file("vda.sock"))
        .socket(place.file("qmp.sock"))
        .start()
        .unwrap();
    let is = |name: &str| {
        let made = std::fs::symlink_metadata(place.file(name)).unwrap();
        (made.mode() & 0o7777, made.uid(), made.gid())
    };
    assert_eq!(is("vda.sock"), (0o660, 0, GROUP));
    assert_eq!(is("qmp.sock"), (0o640, USER, 0));
    assert_eq!(is("vda.sock.lock").0, 0o600);
    let disk = place.file("vda.sock");
    connect_as(USER, GROUP, &disk).unwrap();
    let stranger = connect_as(USER, USER, &disk).unwrap_err();
    assert_eq!(stranger.kind(), io::ErrorKind::PermissionDenied);
    connect_as(USER, USER, &place.file("qmp.sock")).unwrap();
}

#[test]
fn what_cannot_be_given_away_is_an_error_and_nothing_is_left() {
    let place = Place::new();
    let start = |access: &str| {
        let export = format!(
            "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},{access}",
            place.name("vda.sock")
        );
        stderr(&refused(&[
            "--blockdev",
            "null-co,node-name=n",
            "--export",
            &export,
        ]))
    };
    let said = start("addr.group=no-such-group");
    let expected = "Parameter 'group': there is no group 'no-such-group' on this machine";
    assert!(said.contains(expected), "{said}");
    assert!(place.files().is_empty());
    // (gid_t) -1 of a chown(2) is no number that can be given.
    let said = start("addr.owner=4294967295");
    assert!(said.contains("there is no user '4294967295'"), "{said}");
    assert!(place.files().is_empty());
}
