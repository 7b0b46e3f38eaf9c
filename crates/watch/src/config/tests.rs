//! Files, good and bad.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::core::headroom::HeadRoom;
use crate::core::machine::Rules;
use crate::core::view::Disk;
use crate::settings::{OnFailed, Strategy, ZfsProperty};

const WHOLE: &str = r#"
runtime-directory = "/run/w"
journal = "/var/w/journal"
listen = "127.0.0.1:9108"
alert-command = ["/bin/page", "storage"]

[limits]
parallel-extensions = 2
extensions-per-hour = 10
bytes-per-day = "1T"

[defaults]
strategy = "command"
command = ["/sbin/grow", "-v"]
command-time-limit = "90s"
step = "4G"
cap = "100G"

[[machines]]
name = "db"
sockets = ["/run/db.qmp"]
step = "8G"

[[machines.disks]]
qdev = "log*"
strategy = "leave"

[[machines.disks]]
node = "disk[0-9]"
file = "/srv/*.qcow2"
path = "/srv/pool"
enough = "1G"

[[machines]]
sockets = ["/run/vm/*.qmp", "/run/other.qmp"]
strategy = "quota"
reserve = "10G"
head-room-min = "3G"
head-room-max = "20G"
head-room-safety = 1.5
on-failed = "resume-after"
failed-delay = "1min"
"#;

#[test]
fn sections_are_put_one_on_the_other() {
    let config = Config::parse(WHOLE).unwrap();
    assert_eq!((config.parallel, config.limits.per_hour), (2, 10));
    assert_eq!(config.limits.bytes_per_day, 1 << 40);
    let db = config.section("/run/db.qmp").unwrap();
    assert_eq!(db.name_of(Path::new("/run/db.qmp")), "db");
    let disk = |name: &str, node: &str, file: &str| Disk {
        name: name.to_owned(),
        node: Some(node.to_owned()),
        file: Some(file.to_owned()),
        ..Disk::default()
    };
    let log = db.of(&disk("log1", "disk7", "/srv/a.qcow2"));
    assert_eq!((&log.strategy, log.early), (&Strategy::Leave, None));
    let some = db.of(&disk("x", "disk7", "/srv/a.qcow2"));
    assert_eq!(
        (some.step, some.enough, some.cap),
        (8 << 30, 1 << 30, Some(100 << 30))
    );
    let head_room = HeadRoom {
        min: 1 << 30,
        max: 32 << 30,
        safety: 200,
    };
    assert_eq!(some.early, Some(head_room));
    assert_eq!(some.path.as_deref(), Some(Path::new("/srv/pool")));
    let Strategy::Command(program) = &some.strategy else {
        panic!("{some:?}");
    };
    assert_eq!(program.argv, ["/sbin/grow", "-v"]);
    assert_eq!(program.time_limit, Duration::from_secs(90));
    let rest = db.of(&disk("x", "disk7", "/srv/a.raw"));
    assert_eq!(
        (rest.step, rest.enough, &rest.path),
        (8 << 30, 4 << 30, &None)
    );

    let other = config.section("/run/vm/a.qmp").unwrap();
    assert_eq!(other.name_of(Path::new("/run/vm/a.qmp")), "/run/vm/a.qmp");
    let settings = other.of(&Disk::default());
    assert_eq!(settings.strategy, Strategy::Quota(None));
    let head_room = HeadRoom {
        min: 3 << 30,
        max: 20 << 30,
        safety: 150,
    };
    assert_eq!(settings.early, Some(head_room));
    assert_eq!(settings.on_failed, OnFailed::After(Duration::from_secs(60)));
    assert!(config.section("/run/vm/a/b.qmp").is_none());
}

#[test]
fn in_words_says_what_would_happen() {
    let config = Config::parse(WHOLE).unwrap();
    let sockets = ["/run/db.qmp", "/run/other.qmp"].map(PathBuf::from);
    let words = in_words(&config, &sockets);
    for part in [
        "Machines 'db': /run/db.qmp:\n  /run/db.qmp\n",
        "Disks with node disk[0-9] and file /srv/*.qcow2:\n",
        "runs /sbin/grow -v (killed after 90 s) for 8 GiB more, up to 100 GiB;",
        "as soon as less is free than 2.00 times what is written during an extension, 4 GiB at least, 32 GiB at most\n",
        "All other disks:\n",
        "raises the quota of its node by 4 GiB, up to 100 GiB, as long as 10 GiB stay free",
        "continued after 1 min, if its storage can be looked at",
        "2 extensions at a time, 10 within an hour, 1 TiB within a day",
        "Who has to be woken: /bin/page storage",
    ] {
        assert!(words.contains(part), "{part}\n{words}");
    }
    let none = in_words(
        &Config::parse("[[machines]]\nsockets = [\"/a\"]").unwrap(),
        &[],
    );
    assert!(none.contains("no such socket is there now"), "{none}");
    assert!(
        none.contains("no space: you are told, nothing is done"),
        "{none}"
    );
}

/// What is wrong is said with the place, and with what is right.
#[test]
fn mistakes() {
    let machine = |more: &str| format!("[[machines]]\nsockets = [\"/run/a\"]\n{more}\n");
    for (text, says) in [
        ("", "there are no machines"),
        ("[[machines]]", "sockets: name one"),
        (
            "[[machines]]\nsockets = [\"a\"]",
            "'a' is not an absolute path",
        ),
        (
            "[[machines]]\nsockets = [\"/a*\"]\nname = \"x\"",
            "several machines cannot have one name",
        ),
        ("jornal = \"/x\"", "did you mean 'journal'?"),
        (
            "[limits]\nparalel-extensions = 1",
            "did you mean 'parallel-extensions'?",
        ),
        ("[defaults]\nstategy = \"wait\"", "did you mean 'strategy'?"),
        (&machine("stepp = \"1G\""), "did you mean 'step'?"),
        (
            &machine("[[machines.disks]]\nnod = \"x\""),
            "did you mean 'node'?",
        ),
        (
            &machine("strategy = \"btrfs\""),
            "unknown variant `btrfs`, expected one of `leave`, `wait`, `command`, `quota`, `lvm`, `zfs`",
        ),
        (&machine("strategy = \"comand\""), "did you mean 'command'?"),
        (
            &machine("strategy = \"command\""),
            "machines[0] (/run/a): strategy = \"command\" needs command",
        ),
        (
            &machine("strategy = \"command\"\ncommand = []"),
            "not the absolute path of a program",
        ),
        (
            &machine("strategy = \"command\"\ncommand = [\"grow\"]"),
            "'grow' is not the absolute path",
        ),
        (
            &machine("command = [\"/bin/grow\"]"),
            "command is of use only with strategy",
        ),
        (
            &machine("reserve = \"1G\""),
            "reserve is of use only with strategy = \"quota\"",
        ),
        (
            &machine("on-failed = \"resume-when-healthy\""),
            "needs health-command",
        ),
        (&machine("step = \"1K\""), "use 64 KiB or more"),
        (&machine("step = \"1X\""), "expected a size in bytes"),
        (&machine("step = -1"), "expected a size in bytes"),
        (
            &machine("enough = \"3G\""),
            "enough: 3 GiB is not between 1 byte and a step of 2 GiB",
        ),
        (&machine("poll = 5"), "a time with its unit"),
        (&machine("poll = \"1ms\""), "poll: use 50ms or more"),
        (
            &machine("backoff-first = \"1h\""),
            "backoff-first is longer than backoff-max",
        ),
        (&machine("give-up-after = 0"), "give-up-after"),
        (
            &machine("vmm = \"qemu\""),
            "vmm: 'qemu' is not an absolute path",
        ),
        (
            "[[machines]]\nsockets = [\"/run/*\"]\nvmm = \"/run/qemu\"",
            "several machines cannot have one VMM",
        ),
        (
            &machine("strategy = \"zfs\""),
            "strategy = \"zfs\" needs zfs-property",
        ),
        (
            &machine("strategy = \"lvm\"\ntools = \"sbin\""),
            "tools: 'sbin' is not an absolute path",
        ),
        (
            &machine("strategy = \"zfs\"\nsole-writer = true"),
            "sole-writer is of use only with strategy = \"lvm\"",
        ),
        (
            &machine("strategy = \"leave\"\nreserve = \"1G\""),
            "reserve is of use only with strategy = \"quota\" or \"lvm\" or \"zfs\"",
        ),
        (
            &machine("strategy = \"lvm\"\ncommand-time-limit = \"0s\""),
            "command-time-limit: nothing ends within 0 s",
        ),
        (
            &machine("early = true"),
            "early = true is of use only with a strategy that extends",
        ),
        (
            &machine("strategy = \"quota\"\nhead-room-max = \"1M\""),
            "head-room-min: 1 GiB is not between 1 byte and a head-room-max of 1 MiB",
        ),
        (
            &machine("strategy = \"quota\"\nhead-room-safety = 0.5"),
            "head-room-safety: 0.5 is not between 1 and 100",
        ),
        (
            &machine("[[machines.disks]]\nstep = \"1G\""),
            "disks[0]: say which: by node, qdev or file",
        ),
        (
            &machine("[[machines.disks]]\nnode = \"x\"\npath = \"y\""),
            "'y' is not an absolute path",
        ),
        (
            &format!("listen = \"0.0.0.0:1\"\n{}", machine("")),
            "listen: metrics address '0.0.0.0:1'",
        ),
        (
            &format!("journal = \"x\"\n{}", machine("")),
            "journal: 'x' is not an absolute path",
        ),
        (
            &format!("[limits]\nparallel-extensions = 0\n{}", machine("")),
            "0 would extend nothing",
        ),
        (
            &format!("alert-command = [\"page\"]\n{}", machine("")),
            "alert-command: 'page'",
        ),
        ("[[machines", "line 1"),
    ] {
        let error = Config::parse(text).map(|_| ()).expect_err(text).to_string();
        assert!(error.contains(says), "{text}\n{error}");
    }
}

#[test]
fn two_sockets_of_one_vm() {
    let config = Config::parse(
        "[[machines]]\nsockets = [\"/run/vm/*.daemon\"]\nvmm = \"/run/vm/*.qemu\"\n\
         [[machines]]\nsockets = [\"/run/vm/*.qemu\"]",
    )
    .unwrap();
    let socket = Path::new("/run/vm/a.b.daemon");
    let section = config.section("/run/vm/a.b.daemon").unwrap();
    assert_eq!(section.vmm_of(socket), Some("/run/vm/a.b.qemu".into()));
    assert_eq!(config.machines[1].vmm_of(socket), None);
    assert!(in_words(&config, &[]).contains("one VM with /run/vm/*.qemu"));
}

#[test]
fn volumes() {
    let config = Config::parse(
        r#"
[[machines]]
sockets = ["/run/a"]
strategy = "lvm"
sole-writer = true
reserve = "8G"

[[machines]]
sockets = ["/run/b"]
strategy = "zfs"
zfs-property = "refquota"
dataset = "tank/b"
tools = "/opt/zfs"
"#,
    )
    .unwrap();
    let of = |socket: &str| config.section(socket).unwrap().of(&Disk::default());
    let Strategy::Lvm(lvm) = &of("/run/a").strategy else {
        panic!("lvm");
    };
    assert_eq!(
        (lvm.tools.as_path(), lvm.sole_writer),
        (Path::new("/usr/sbin"), true)
    );
    let Strategy::Zfs(zfs) = &of("/run/b").strategy else {
        panic!("zfs");
    };
    assert_eq!(
        (zfs.tools.as_path(), zfs.property),
        (Path::new("/opt/zfs"), ZfsProperty::Refquota)
    );
    assert!(of("/run/a").early.is_some() && of("/run/b").early.is_some());
    let words = in_words(&config, &[]);
    for part in [
        "as long as 8 GiB stay free in the volume group, which no other host changes",
        "lvchange --errorwhenfull y",
        "raises refquota of tank/b by 2 GiB",
        "QEMU's own disks need werror=stop",
    ] {
        assert!(words.contains(part), "{part}\n{words}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::read(Path::new("/nonexistent/watch.toml")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/nonexistent/watch.toml: cannot be read")
    );
}
