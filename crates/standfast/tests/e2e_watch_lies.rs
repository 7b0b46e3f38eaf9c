//! `standfast watch` among machines that are slow, mad or bad, and programs that are.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use common::{Script, Setup, disk, error, event};
use serde_json::{Value, json};
use testkit::place::{PATIENCE, eventually};
use testkit::{Tmpfs, soak};

const MIB: u64 = 1 << 20;

/// A file system without room.
fn full() -> Tmpfs {
    let tmpfs = Tmpfs::new(2 * MIB).unwrap();
    std::fs::write(tmpfs.path().join("image"), vec![1; 2 << 20]).unwrap();
    tmpfs
}

fn machine(setup: &Setup, name: &str, tmpfs: &Tmpfs) -> Script {
    Script::start(
        setup.place.file(name),
        disk(&tmpfs.path().join("image"), 1 << 30),
    )
}

const GROWS: &str = r#"
[[machines]]
sockets = ["@PLACE@/*.qmp"]
strategy = "command"
command = ["@PLACE@/grow"]
early = false
command-time-limit = "1s"
step = "1M"
backoff-first = "100ms"
backoff-max = "200ms"
give-up-after = 3
"#;

fn grows(setup: &Setup, tmpfs: &Tmpfs) {
    let dir = tmpfs.path().display();
    setup.script(
        "grow",
        &format!(
            "echo x >>{}; exec mount -o remount,size=$STANDFAST_NEW_SIZE {dir}",
            setup.place.name("runs")
        ),
    );
}

fn runs(setup: &Setup) -> usize {
    std::fs::read_to_string(setup.place.file("runs"))
        .unwrap_or_default()
        .lines()
        .count()
}

/// In QEMU a `cont` between an error and its STOP loses the request.
#[test]
fn a_stop_that_comes_late_is_waited_for() {
    let tmpfs = full();
    let setup = Setup::new(GROWS);
    grows(&setup, &tmpfs);
    let script = machine(&setup, "a.qmp", &tmpfs);
    let mut watcher = setup.watch(1);
    let failed = script.fail(Duration::from_secs(1));
    eventually("it is continued", || script.conts().len() == 1);
    assert!(script.conts()[0] - failed >= Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((script.conts().len(), runs(&setup)), (1, 1));
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    assert_eq!(setup.history()[0]["ending"], "continued");
}

/// Sizes that cannot be: nothing is extended, and somebody is told.
#[test]
fn lies_about_sizes_extend_nothing() {
    let tmpfs = full();
    let setup = Setup::new(GROWS);
    grows(&setup, &tmpfs);
    let lies = [
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(u64::MAX),
        json!("much"),
        json!(1e300),
    ];
    let scripts = lies.iter().enumerate().map(|(number, lie)| {
        let mut block = disk(&tmpfs.path().join("image"), 0);
        block[0]["inserted"]["image"]["virtual-size"] = lie.clone();
        Script::start(setup.place.file(&format!("{number}.qmp")), block)
    });
    let scripts: Vec<_> = scripts.collect();
    let mut watcher = setup.watch(lies.len());
    for script in &scripts {
        script.fail(Duration::ZERO);
    }
    eventually("all are given up", || setup.count("gave-up") == lies.len());
    assert!(scripts.iter().all(|script| script.conts().is_empty()));
    assert_eq!(runs(&setup), 0);
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}

/// An extension is what the size says.
#[test]
fn programs_that_lie_hang_or_print_without_end() {
    for (program, says) in [
        (
            "exit 0",
            "it has not grown, 1048576 bytes were asked for (exit status: 0",
        ),
        ("echo no >&2; exit 7", "it printed: no"),
        (
            "mount -o remount,size=2560k @DIR@",
            "it has grown by 524288 bytes only",
        ),
        ("sleep 1000", "has not ended within 1 s and was killed"),
        (
            "while :; do echo 0123456789; done",
            "has not ended within 1 s and was killed",
        ),
    ] {
        let tmpfs = full();
        let setup = Setup::new(GROWS);
        setup.script(
            "grow",
            &program.replace("@DIR@", &tmpfs.path().display().to_string()),
        );
        let script = machine(&setup, "a.qmp", &tmpfs);
        let mut watcher = setup.watch(1);
        script.fail(Duration::ZERO);
        let failed = || {
            let records = setup.records().into_iter();
            records
                .filter(|record| record["result"] == "failed")
                .map(|record| record["detail"].to_string())
        };
        eventually(program, || failed().next().is_some());
        assert!(
            failed().next().unwrap().contains(says),
            "{program}: {:?}",
            failed().next()
        );
        assert!(script.conts().is_empty(), "{program}");
        assert!(watcher.terminate(PATIENCE).unwrap().success());
    }
}

/// It stays full while somebody impatient continues it again and again; then there is room.
#[test]
fn what_stays_full_is_not_flapped() {
    let tmpfs = full();
    let wait = "strategy = \"wait\"\npoll = \"200ms\"";
    let setup = Setup::new(&GROWS.replace(
        "strategy = \"command\"\ncommand = [\"@PLACE@/grow\"]\nearly = false\ncommand-time-limit = \"1s\"",
        wait,
    ));
    let script = machine(&setup, "a.qmp", &tmpfs);
    let mut watcher = setup.watch(1);
    script.fail(Duration::ZERO);
    for _ in 0..soak(20, 2400) {
        std::thread::sleep(Duration::from_millis(50));
        // Somebody continues it, and it fails again.
        script.state.lock().unwrap().status = "running";
        script.send(format!("{}\n", event("RESUME")).as_bytes());
        script.fail(Duration::ZERO);
    }
    assert_eq!(script.conts().len(), 0);
    tmpfs.resize(8 * MIB).unwrap();
    let begin = Instant::now();
    eventually("it is continued", || script.conts().len() == 1);
    println!("continued {:?} after there was room", begin.elapsed());
    // It is written down once the machine has answered.
    let ending = || setup.history().pop()?.get("ending").cloned();
    eventually("it is in the history", || {
        ending().is_some_and(|ending| ending == "continued")
    });
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}

/// Many machines on one file system: one extension is for all.
#[test]
fn one_extension_is_for_all_that_wait() {
    let tmpfs = full();
    let setup = Setup::new(GROWS);
    grows(&setup, &tmpfs);
    let scripts: Vec<_> = (0..50)
        .map(|n| machine(&setup, &format!("{n}.qmp"), &tmpfs))
        .collect();
    let mut watcher = setup.watch(50);
    for script in &scripts {
        script.fail(Duration::ZERO);
    }
    eventually("all go on", || {
        scripts.iter().all(|script| script.conts().len() == 1)
    });
    assert_eq!(runs(&setup), 1);
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}

/// Whoever is mad is disconnected; the others are served on, with metrics and alerts.
#[test]
fn mad_machines_keep_nobody_from_being_served() {
    let tmpfs = full();
    let alert = format!("listen = \"127.0.0.1:0\"\nalert-command = [\"@PLACE@/page\"]\n{GROWS}");
    let setup = Setup::new(&alert);
    grows(&setup, &tmpfs);
    setup.script("page", &format!("cat >>{}", setup.place.name("pages")));
    let silent = UnixListener::bind(setup.place.file("silent.qmp")).unwrap();
    let names = ["garbage", "half", "flood", "mute", "well"];
    let scripts = names.map(|name| machine(&setup, &format!("{name}.qmp"), &tmpfs));
    let [garbage, half, flood, mute, well] = &scripts;
    mute.state.lock().unwrap().answers = false;
    let mut watcher = setup.start(&[]);
    setup.wait_status("all are seen", |status| {
        let seen = status["machines"].as_array().into_iter().flatten();
        seen.filter(|machine| machine["state"] == "running").count() == 4
    });
    garbage.send(b"{\"event\": \xff\xfe]]]]\n");
    half.send(b"{\"return\": {\"status\": \"io-err");
    for client in &half.state.lock().unwrap().clients {
        client.shutdown(std::net::Shutdown::Both).unwrap();
    }
    let flooding = flood.clone();
    let flooder = std::thread::spawn(move || {
        let text = format!("{}\n{}\n", error("report"), event("VNC_CONNECTED")).repeat(1000);
        for _ in 0..50 {
            flooding.send(text.as_bytes());
        }
    });
    for _ in 0..5 {
        let failed = well.fail(Duration::ZERO);
        let conts = well.conts().len();
        eventually("it goes on", || well.conts().len() > conts);
        println!(
            "continued {:?} after it has failed",
            *well.conts().last().unwrap() - failed
        );
        std::fs::write(tmpfs.path().join("more"), vec![1; 64 << 20]).unwrap_err();
    }
    flooder.join().unwrap();
    // What was garbage has connected again.
    for script in [garbage, half] {
        eventually("it is connected again", || {
            script.state.lock().unwrap().clients.len() > 1
        });
    }
    let reported = setup
        .records()
        .iter()
        .filter(|record| record["event"] == "reported")
        .count();
    assert!(
        (1..10).contains(&reported),
        "{reported} records of 50,000 errors"
    );
    let port = watcher.stderr();
    let port = port
        .split("metrics at http://")
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .unwrap();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(port).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(get("/healthz").ends_with("ok\n"));
    let metrics = get("/metrics");
    for line in [
        "standfast_watch_incidents_total{cause=\"nospace\"} 5",
        "standfast_watch_extensions_total{result=\"grown\"} 5",
        "standfast_watch_open_incidents 0",
        "standfast_watch_machines{state=\"io-error\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    // The guests that were told of an error are a reason to wake somebody.
    eventually("somebody is woken", || {
        std::fs::read_to_string(setup.place.file("pages")).is_ok_and(|pages| {
            pages.lines().any(|page| {
                let page: Value = serde_json::from_str(page).unwrap_or_default();
                page["event"] == "reported" && page["disk"] == "vda"
            })
        })
    });
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    drop(silent);
}

/// The two sockets of a VM whose daemon is linked with its VMM: as long as the daemon holds something, only the daemon
/// gets a `cont`.
#[test]
fn two_sockets_of_one_vm() {
    two_sockets(true);
}

#[test]
fn without_a_link_they_are_two_machines() {
    two_sockets(false);
}

fn two_sockets(linked: bool) {
    let (small, other) = (full(), full());
    let wait = "strategy = \"wait\"\npoll = \"100ms\"\nstep = \"1M\"\n";
    let setup = Setup::new(&format!(
        "[[machines]]\nsockets = [\"@PLACE@/*.daemon\"]\nvmm = \"@PLACE@/*.qemu\"\n{wait}\
         [[machines]]\nsockets = [\"@PLACE@/*.qemu\"]\n{wait}"
    ));
    let daemon = machine(&setup, "vm.daemon", &small);
    if linked {
        daemon.state.lock().unwrap().link = json!({"id": "vm0", "type": "vmm-qemu",
            "state": "connected", "vm": "paused", "paused-by": "other"});
    }
    // A disk of its own beside the daemon's.
    let qemu = machine(&setup, "vm.qemu", &other);
    let mut watcher = setup.watch(2);
    daemon.stop();
    eventually("it is seen", || setup.count("incident-began") == 1);
    qemu.stop();
    eventually("both are", || setup.count("incident-began") == 2);
    // QEMU's own disk has room again, the daemon's has none.
    other.resize(16 * MIB).unwrap();
    if linked {
        eventually("it waits for the daemon", || {
            let records = setup.records();
            records
                .iter()
                .any(|record| record["reason"].to_string().contains("goes on first"))
        });
        std::thread::sleep(Duration::from_millis(500));
    } else {
        eventually("it goes on alone", || qemu.conts().len() == 1);
    }
    assert_eq!(
        (daemon.conts().len(), qemu.conts().len()),
        (0, usize::from(!linked))
    );
    small.resize(16 * MIB).unwrap();
    eventually("both go on", || {
        (daemon.conts().len(), qemu.conts().len()) == (1, 1)
    });
    assert_eq!(daemon.conts()[0] < qemu.conts()[0], linked);
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}
