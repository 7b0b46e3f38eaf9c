//! `standfast watch` with `standfastd`, on storage that really runs full.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Setup, standfast};
use frontend::{Disk, Options};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::daemon::Builder;
use testkit::place::{PATIENCE, Place, eventually, stderr, stdout};
use testkit::{Daemon, Driver, Mix, Qmp, Tmpfs, Workload, soak};

const MIB: u64 = 1 << 20;

fn daemon() -> Builder {
    Daemon::builder(env!("CARGO_BIN_EXE_standfast"))
        .arg("demo-daemon")
        .timeout(PATIENCE)
}

/// A daemon with the disk `vda` of so many bytes, on a file in `dir`.
fn with_file(place: &Place, dir: &Path, bytes: u64, scope: &str) -> Builder {
    let image = dir.join("disk.img");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    let node = json!({"driver": "file", "node-name": "disk0", "filename": image, "cache": {"direct": true}});
    let export = json!({"type": "vhost-user-blk", "id": "vda", "node-name": "disk0", "writable": true,
        "werror": "stop", "hold-scope": scope, "addr": {"type": "unix", "path": place.name("vda.sock")}});
    let chardev = format!(
        "socket,id=qmp,path={},server=on,wait=off",
        place.name("vm.qmp")
    );
    daemon()
        .args([
            "--blockdev",
            &node.to_string(),
            "--export",
            &export.to_string(),
        ])
        .args(["--chardev", &chardev, "--monitor", "chardev=qmp"])
        .socket(place.file("vda.sock"))
        .socket(place.file("vm.qmp"))
}

/// Writes `blocks` blocks of 4 KiB, several times over, and checks each.
fn workload(blocks: usize, requests: u64) -> Driver {
    Driver::new(Workload {
        seed: 11,
        requests,
        blocks,
        blocks_max: 32,
        mix: Mix {
            read: 5,
            write: 90,
            write_zeroes: 0,
            discard: 0,
            flush: 5,
        },
        timeout: Duration::from_secs(120),
        ..Workload::default()
    })
}

const GROWS: &str = r#"
[[machines]]
sockets = ["@PLACE@/*.qmp"]
strategy = "command"
command = ["@PLACE@/grow"]
early = false
step = "4M"
"#;

/// The control is every other test of ENOSPC: without the watcher the client waits for ever.
fn writes_to_many_times_the_first_size(scope: &str) {
    let tmpfs = Tmpfs::new(2 * MIB).unwrap();
    let setup = Setup::new(GROWS);
    let dir = tmpfs.path().display();
    setup.script(
        "grow",
        &format!("exec mount -o remount,size=$STANDFAST_NEW_SIZE {dir}"),
    );
    let place = &setup.place;
    let mut daemon = with_file(place, tmpfs.path(), 32 * MIB, scope)
        .start()
        .unwrap();
    let mut watcher = setup.watch(1);
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    let mut driver = workload(8192, 2000);
    while !driver.is_exhausted() {
        driver.fill(&mut disk).unwrap();
        driver.reap(&mut disk).unwrap();
    }
    driver.drain(&mut disk).unwrap();
    driver.read_back(&mut disk).unwrap();
    driver.check_image(&tmpfs.path().join("disk.img")).unwrap();
    let summary = driver.finish(&mut disk).unwrap();
    println!("{summary:?}");
    drop(disk);
    assert!(watcher.terminate(PATIENCE).unwrap().success());

    // Each incident is in the journal, from its error to its end.
    let history = setup.history();
    let extended: u64 = history
        .iter()
        .map(|told| told["extended-bytes"].as_u64().unwrap())
        .sum();
    assert!(history.len() >= 6 && extended >= 28 * MIB, "{history:?}");
    for told in &history {
        assert_eq!(
            (&told["cause"], &told["ending"]),
            (&json!("nospace"), &json!("continued")),
            "{told}"
        );
        assert_eq!(
            (&told["disk"], &told["gave-up"]),
            (&json!("vda"), &json!(false)),
            "{told}"
        );
        assert!(told["seconds-paused"].as_f64().unwrap() > 0.0, "{told}");
    }
    let text = stdout(&standfast(&["history", &setup.journal()]));
    assert!(
        text.starts_with("BEGAN") && text.lines().count() == history.len() + 1,
        "{text}"
    );
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

#[test]
fn a_client_writes_to_many_times_the_first_size() {
    writes_to_many_times_the_first_size("vm");
}

#[test]
fn a_disk_that_stops_alone_goes_on_alone() {
    writes_to_many_times_the_first_size("device");
}

/// The account of a `quota` node is raised, up to the cap and not beyond.
#[test]
fn a_quota_is_raised_up_to_its_cap() {
    let setup = Setup::new(
        r#"
[[machines]]
name = "vm"
sockets = ["@PLACE@/qmp.sock"]
strategy = "quota"
early = false
step = "128K"
cap = "896K"
backoff-first = "100ms"
give-up-after = 2
"#,
    );
    let place = &setup.place;
    let mut daemon = place.with_disk(daemon()).start().unwrap();
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    let mut limit = || {
        let nodes = qmp.execute("query-named-block-nodes", Value::Null).unwrap();
        let nodes = nodes.as_array().unwrap().iter();
        nodes
            .filter_map(|node| node["x-quota-limit"].as_u64())
            .next()
            .unwrap()
    };
    assert_eq!(limit(), 512 << 10);
    let mut watcher = setup.watch(1);
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    // Within the cap.
    let mut driver = workload(200, 400);
    while !driver.is_exhausted() {
        driver.fill(&mut disk).unwrap();
        driver.reap(&mut disk).unwrap();
    }
    driver.drain(&mut disk).unwrap();
    driver.read_back(&mut disk).unwrap();
    driver.finish(&mut disk).unwrap();
    // Beyond it.
    let data = vec![0x5a; 1 << 20];
    disk.submit(
        0,
        frontend::Request::Write {
            sector: 0,
            data: &data,
        },
    )
    .unwrap();
    disk.kick(0).unwrap();
    eventually("it is given up", || setup.count("gave-up") == 1);
    assert_eq!(limit(), 896 << 10);
    let status = setup.status();
    assert_eq!(status["machines"][0]["state"], "io-error", "{status}");
    let table = stdout(&standfast(&[
        "watch",
        "status",
        &place.name("run/control.sock"),
    ]));
    assert!(table.contains("vda: given up, since"), "{table}");
    // Somebody who knows better.
    qmp.execute(
        "x-quota-set",
        json!({"node-name": "disk0", "limit": 2 << 20}),
    )
    .unwrap();
    qmp.execute("cont", Value::Null).unwrap();
    let (_, completion) = disk.wait_any(PATIENCE).unwrap().expect("the write ends");
    assert!(completion.is_ok());
    eventually("it is told", || {
        setup.count("incident-ended") == setup.count("incident-began")
    });
    assert_eq!(
        setup.history().last().unwrap()["ending"],
        "continued-by-other"
    );
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    drop(disk);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

/// A disk that is full, and a write that waits.
fn full(setup: &Setup, tmpfs: &Tmpfs) -> (Daemon, Disk) {
    let daemon = with_file(&setup.place, tmpfs.path(), 8 * MIB, "vm")
        .start()
        .unwrap();
    let mut disk = Disk::connect(setup.place.file("vda.sock"), Options::default()).unwrap();
    let data = vec![0x5a; 4 << 20];
    disk.submit(
        0,
        frontend::Request::Write {
            sector: 0,
            data: &data,
        },
    )
    .unwrap();
    disk.kick(0).unwrap();
    let mut qmp = Qmp::connect(setup.place.file("vm.qmp")).unwrap();
    eventually("it is stopped", || {
        qmp.execute("query-status", Value::Null).unwrap()["status"] == "io-error"
    });
    (daemon, disk)
}

fn ends_well(disk: &mut Disk) {
    let (_, completion) = disk.wait_any(PATIENCE).unwrap().expect("the write ends");
    assert!(completion.is_ok());
}

/// What happened while nobody listened is found; a watcher that is killed has not been the only one.
#[test]
fn a_watcher_that_is_killed_is_followed_by_another() {
    let tmpfs = Tmpfs::new(2 * MIB).unwrap();
    let wait = GROWS.replace(
        "strategy = \"command\"\ncommand = [\"@PLACE@/grow\"]\nearly = false",
        "strategy = \"wait\"\npoll = \"100ms\"",
    );
    let setup = Setup::new(&wait);
    let (mut daemon, mut disk) = full(&setup, &tmpfs);
    let mut first = setup.watch(1);
    eventually("it waits", || setup.count("decision") > 0);
    // One for a runtime directory.
    let output = standfast(&["watch", "--config", &setup.config()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("control.sock"), "{output:?}");
    first.kill().unwrap();
    let mut second = setup.watch(1);
    eventually("it waits, too", || setup.count("incident-began") == 2);
    // Too little is not enough.
    tmpfs.resize(3 * MIB).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(disk.wait_any(Duration::ZERO).unwrap().is_none());
    tmpfs.resize(16 * MIB).unwrap();
    ends_well(&mut disk);
    eventually("it is told", || setup.count("incident-ended") == 1);
    assert!(second.terminate(PATIENCE).unwrap().success());
    let history = setup.history();
    assert_eq!(history.len(), 2, "{history:?}");
    assert_eq!(
        (&history[0]["ending"], &history[1]["ending"]),
        (&Value::Null, &json!("continued"))
    );
    drop(disk);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

#[test]
fn check_dry_run_and_once() {
    let tmpfs = Tmpfs::new(2 * MIB).unwrap();
    let setup = Setup::new(GROWS);
    let dir = tmpfs.path().display();
    setup.script(
        "grow",
        &format!("cat >>{dir}.json; exec mount -o remount,size=16M {dir}"),
    );
    let (mut daemon, mut disk) = full(&setup, &tmpfs);
    let config = setup.config();

    let output = standfast(&["watch", "--config", &config, "--check"]);
    let text = stdout(&output);
    assert!(
        output.status.success()
            && text.contains("vm.qmp\n")
            && text.contains("/grow (killed after"),
        "{output:?}"
    );

    let output = standfast(&["watch", "--config", &config, "--dry-run", "--once"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        text.contains("vda: stopped: nospace") && text.contains("would run"),
        "{output:?}"
    );
    assert!(
        !Path::new(&setup.journal()).exists() && disk.wait_any(Duration::ZERO).unwrap().is_none()
    );

    let output = standfast(&["watch", "--config", &config, "--once"]);
    assert!(output.status.success(), "{output:?}");
    assert!(stdout(&output).contains("extended by"), "{output:?}");
    ends_well(&mut disk);
    let input = std::fs::read_to_string(format!("{dir}.json")).unwrap();
    std::fs::remove_file(format!("{dir}.json")).unwrap();
    let input: Value = serde_json::from_str(&input).unwrap();
    assert_eq!(
        (&input["disk"], &input["extend-by"]),
        (&json!("vda"), &json!(4 * MIB)),
        "{input}"
    );
    assert_eq!(input["new-size"], json!(6 * MIB), "{input}");
    assert_eq!(setup.history().len(), 1);

    // All is well, and nothing is done.
    let output = standfast(&["watch", "--config", &config, "--once"]);
    assert!(
        output.status.success() && setup.history().len() == 1,
        "{output:?}"
    );
    setup.write("[[machines]]\nsokets = []");
    let output = standfast(&["watch", "--config", &config, "--check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("did you mean 'sockets'?"),
        "{output:?}"
    );
    drop(disk);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

/// SIGHUP: a good file is taken over, a bad one is not.
#[test]
fn another_configuration() {
    let tmpfs = Tmpfs::new(2 * MIB).unwrap();
    let leave = "[[machines]]\nsockets = [\"@PLACE@/*.qmp\"]\n";
    let setup = Setup::new(leave);
    let dir = tmpfs.path().display();
    setup.script("grow", &format!("exec mount -o remount,size=16M {dir}"));
    let (mut daemon, mut disk) = full(&setup, &tmpfs);
    let mut watcher = setup.watch(1);
    eventually("it is left", || setup.count("decision") == 1);
    setup.write("[[machines]]\nsockets = 3\n");
    watcher.signal(Signal::HUP).unwrap();
    watcher
        .wait_for_stderr("the configuration stays as it is", PATIENCE)
        .unwrap();
    setup.write(GROWS);
    watcher.signal(Signal::HUP).unwrap();
    ends_well(&mut disk);
    // Whoever is not wanted any more is forgotten.
    setup.write("[[machines]]\nsockets = [\"/nonexistent\"]\n");
    watcher.signal(Signal::HUP).unwrap();
    setup.wait_status("it is forgotten", |status| status["machines"] == json!([]));
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    drop(disk);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

/// Storage that stays full: attempts come ever later, are told of, and end when there is room, within one step of
/// the back-off.
#[test]
fn storage_that_stays_full() {
    let tmpfs = Tmpfs::new(2 * MIB).unwrap();
    let setup = Setup::new(&format!(
        "{GROWS}backoff-first = \"100ms\"\nbackoff-max = \"2s\"\ngive-up-after = 100000\n"
    ));
    setup.script("grow", "exit 1");
    let (mut daemon, mut disk) = full(&setup, &tmpfs);
    let mut watcher = setup.watch(1);
    let time = Duration::from_secs(soak(4, 120));
    std::thread::sleep(time);
    let (attempts, lines) = (setup.count("extension"), watcher.stderr().lines().count());
    tmpfs.resize(16 * MIB).unwrap();
    let begin = Instant::now();
    ends_well(&mut disk);
    println!(
        "{attempts} attempts and {lines} lines in {time:?}; it went on {:?} after there was room",
        begin.elapsed()
    );
    // A step is three quarters of 2 s at least.
    let most = usize::try_from(time.as_millis() / 1500).unwrap() + 8;
    assert!(attempts <= most && lines <= 4 * most, "{attempts} {lines}");
    eventually("it is told", || setup.count("incident-ended") == 1);
    assert_eq!(setup.history()[0]["ending"], "continued");
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    drop(disk);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

/// The same, and somebody impatient who sends `cont` every 100 ms: the watcher does not join in.
#[test]
fn somebody_impatient() {
    let tmpfs = Tmpfs::new(2 * MIB).unwrap();
    let wait = GROWS.replace(
        "strategy = \"command\"\ncommand = [\"@PLACE@/grow\"]\nearly = false",
        "strategy = \"wait\"\npoll = \"1s\"",
    );
    let setup = Setup::new(&wait);
    let (mut daemon, mut disk) = full(&setup, &tmpfs);
    let mut watcher = setup.watch(1);
    eventually("it waits", || setup.count("decision") > 0);
    // The daemon has one monitor socket; another client may wait its turn there.
    let mut qmp = Qmp::connect(setup.place.file("vm.qmp")).unwrap();
    let conts = soak(30, 1200);
    for _ in 0..conts {
        qmp.execute("cont", Value::Null).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let events = qmp.take_events(Duration::from_millis(100)).unwrap();
    let (records, lines) = (setup.records().len(), watcher.stderr().lines().count());
    println!(
        "{conts} conts: {} events, {records} records, {lines} lines of the watcher",
        events.len()
    );
    // Each `cont` is one incident more, no cascade.
    assert!(
        events.len() <= 8 * conts && records <= 8 * conts,
        "{} {records}",
        events.len()
    );
    assert!(disk.wait_any(Duration::ZERO).unwrap().is_none());
    let continued = || {
        let records = setup.records();
        let ended = records
            .iter()
            .filter(|record| record["ending"] == "continued");
        ended.count()
    };
    assert_eq!(continued(), 0);
    tmpfs.resize(16 * MIB).unwrap();
    let begin = Instant::now();
    ends_well(&mut disk);
    println!("it went on {:?} after there was room", begin.elapsed());
    eventually("it is told", || continued() == 1);
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    drop(disk);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

/// The account is below the disk's node, and nobody has said which node it is: the error says which is full. It was "no quota".
#[test]
fn an_account_below_the_disk_is_found_by_the_error() {
    let setup = Setup::new(
        r#"
[[machines]]
name = "vm"
sockets = ["@PLACE@/qmp.sock"]
strategy = "quota"
early = false
step = "128K"
backoff-first = "100ms"
"#,
    );
    let place = &setup.place;
    let image = place.file("disk.img");
    std::fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    let file = json!({"driver": "file", "filename": image});
    let account =
        json!({"driver": "quota", "node-name": "account", "limit": 512 << 10, "file": file});
    let node = json!({"driver": "raw", "node-name": "disk0", "file": account});
    let export = json!({"type": "vhost-user-blk", "id": "vda", "node-name": "disk0", "writable": true,
        "werror": "stop", "addr": {"type": "unix", "path": place.name("vda.sock")}});
    let chardev = format!(
        "socket,id=qmp,path={},server=on,wait=off",
        place.name("qmp.sock")
    );
    let mut daemon = daemon()
        .args(["--blockdev", &node.to_string()])
        .args(["--export", &export.to_string()])
        .args(["--chardev", &chardev, "--monitor", "chardev=qmp"])
        .socket(place.file("vda.sock"))
        .socket(place.file("qmp.sock"))
        .start()
        .unwrap();
    let mut watcher = setup.watch(1);
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    let mut driver = workload(200, 400);
    while !driver.is_exhausted() {
        driver.fill(&mut disk).unwrap();
        driver.reap(&mut disk).unwrap();
    }
    driver.drain(&mut disk).unwrap();
    driver.read_back(&mut disk).unwrap();
    driver.finish(&mut disk).unwrap();
    assert!(setup.count("incident-began") > 0);
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    drop(disk);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}
