//! Every errno of Linux, for every operation and error policy, from storage to guest and management:
//! by the table of `testkit::errors`, which is also compared with QEMU. Injected above files and block
//! devices, said by a file system, and said by Linux for devices that vanish.

mod harness;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use frontend::protocol::WRITE_ZEROES_UNMAP;
use frontend::{Disk, Request, Segment};
use harness::{MIB, PATIENCE, Server, Setup, sparse};
use serde_json::{Value, json};
use testkit::errors::{Case, Guest, OPERATIONS, errnos};
use testkit::{Event, FuseFile, FuseOp, LoopDevice};

const DISK_BYTES: u64 = 8 * MIB;
const BYTES: u32 = 4096;

/// Each policy once for writes and once for reads, never the same for both.
const PAIRS: [(&str, &str); 4] = [
    ("report", "stop"),
    ("ignore", "enospc"),
    ("enospc", "ignore"),
    ("stop", "report"),
];

/// An export, and a client of it.
struct Subject {
    id: String,
    disk: Disk,
    policies: (&'static str, &'static str),
}

impl Subject {
    fn case(&self, operation: &'static str, errno: i32) -> Case {
        let (werror, rerror) = self.policies;
        Case {
            errno,
            vanished: false,
            operation,
            werror,
            rerror,
        }
    }

    /// Sends a request for the block `number`.
    fn submit(&mut self, operation: &str, unmap: bool, number: u64) -> Result<()> {
        let sector = number * u64::from(BYTES) / 512;
        let data = vec![0x5a; BYTES as usize];
        let mut segment = Segment::new(sector, BYTES / 512);
        if unmap && operation == "write-zeroes" {
            segment.flags = WRITE_ZEROES_UNMAP;
        }
        let segments = [segment];
        let request = match operation {
            "read" => Request::Read { sector, len: BYTES },
            "write" => Request::Write {
                sector,
                data: &data,
            },
            "flush" => Request::Flush,
            "discard" => Request::Discard(&segments),
            _ => Request::WriteZeroes(&segments),
        };
        self.disk.submit(0, request)?;
        self.disk.kick(0)?;
        Ok(())
    }

    fn success(&mut self) -> Result<bool> {
        let completion = self.disk.wait(0, PATIENCE)?;
        Ok(completion.context("it has not ended")?.is_ok())
    }

    /// Checks what has become of the request for the block `number`, which storage is about to fail
    /// as the case says. `mend` repairs the storage.
    fn check(
        &mut self,
        server: &mut Server,
        case: &Case,
        number: u64,
        mend: impl FnOnce(&mut Server) -> Result<()>,
    ) -> Result<()> {
        let verdict = case.verdict();
        let offset = match case.operation {
            "flush" => 0,
            _ => number * u64::from(BYTES),
        };
        if verdict.guest == Guest::Nothing {
            let event = stop_event(server, &self.id)?;
            ensure!(event.data["x-offset"] == offset, "{event:?}");
            check_event(case, &event)?;
        } else {
            let success = self.success()?;
            ensure!(success == (verdict.guest == Guest::Success), "the guest");
        }
        let block = told(server, &self.id, |error| {
            error["errno"] == case.errno
                && error["operation"] == case.operation
                && error["offset"] == offset
        })?;
        let last = &block["x-last-error"];
        ensure!(last["cause"] == case.cause(), "{last}");
        let status = verdict.io_status.map_or(Value::Null, Value::from);
        ensure!(block["io-status"] == status, "{block}");
        if verdict.guest == Guest::Nothing {
            ensure!(block["x-incident-cause"] == case.cause(), "{block}");
            let held = server.held(&self.id)?;
            ensure!(held.len() == 1 && held[0]["cause"] == case.cause());
            ensure!(self.disk.poll(0).is_none(), "the guest learns nothing");
        }
        mend(server)?;
        if verdict.guest == Guest::Nothing {
            let id = json!({ "id": self.id });
            server.qmp.execute("x-block-export-cont", id)?;
            ensure!(self.success()?, "tried again");
        }
        Ok(())
    }
}

/// The entry of an export in `query-block`, once its last error is the one that is waited for.
fn told(server: &mut Server, id: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let block = server.block(id)?;
        if is(&block["x-last-error"]) {
            return Ok(block);
        }
        ensure!(Instant::now() < deadline, "the last error: {block}");
        std::thread::yield_now();
    }
}

/// The next event with action *stop*. Those of other actions may be merged, so nobody waits for them.
fn stop_event(server: &mut Server, id: &str) -> Result<Event> {
    loop {
        let event = server.qmp.wait_event("BLOCK_IO_ERROR", PATIENCE)?;
        if event.data["action"] == "stop" {
            ensure!(event.data["device"] == id, "{event:?}");
            return Ok(event);
        }
    }
}

fn check_event(case: &Case, event: &Event) -> Result<()> {
    let data = &event.data;
    let verdict = case.verdict();
    let direction = match case.operation {
        "read" => "read",
        _ => "write",
    };
    let nospace = verdict.nospace.map_or(Value::Null, Value::from);
    for (member, expected) in [
        ("action", verdict.action.into()),
        ("operation", direction.into()),
        ("nospace", nospace),
        ("x-request", case.operation.into()),
        ("x-cause", case.cause().into()),
        ("x-errno", case.errno.into()),
        ("reason", reason(case.errno).into()),
    ] {
        ensure!(data[member] == expected, "{member}: {data}, not {expected}");
    }
    Ok(())
}

fn reason(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_owned()
}

/// Events of the actions that nobody has waited for: as many as have come.
fn check_other_events(server: &Server, subjects: &[Subject]) -> Result<usize> {
    let mut checked = 0;
    for event in server.qmp.log().events() {
        if event.name != "BLOCK_IO_ERROR" || event.data["action"] == "stop" {
            continue;
        }
        let subject = subjects.iter().find(|one| event.data["device"] == one.id);
        let operation = OPERATIONS
            .into_iter()
            .find(|operation| event.data["x-request"] == *operation);
        let errno = event.data["x-errno"].as_i64().map(i32::try_from);
        let (Some(subject), Some(operation), Some(Ok(errno))) = (subject, operation, errno) else {
            anyhow::bail!("{event:?}");
        };
        check_event(&subject.case(operation, errno), event)?;
        checked += 1;
    }
    Ok(checked)
}

/// Over a file and over a block device, each policy for reads and for writes.
#[test]
fn injected() -> Result<()> {
    let mut setup = Setup::new()?;
    let image = setup.path("device.img");
    sparse(&image, DISK_BYTES)?;
    let device = LoopDevice::new(&image, false)?;
    let mut ids = Vec::new();
    for driver in ["file", "host_device"] {
        let path = match driver {
            "file" => setup.path("file.img"),
            _ => device.path().to_owned(),
        };
        if driver == "file" {
            sparse(&path, DISK_BYTES)?;
        }
        for (werror, rerror) in PAIRS {
            let id = format!("{driver}-{werror}").replace('_', "-");
            let node = format!("n-{id}");
            setup = setup
                .blockdev(&json!({ "driver": "blkdebug", "node-name": node, "image": {
                    "driver": driver, "filename": path, "discard": "unmap", "locking": "off",
                    "cache": { "direct": true },
                } }))
                .export(
                    &id,
                    &node,
                    json!({ "werror": werror, "rerror": rerror, "hold-scope": "request" }),
                );
            ids.push((id, (werror, rerror)));
        }
    }
    let mut server = setup.start()?;
    let mut subjects = Vec::new();
    for (id, policies) in ids {
        let disk = server.disk(&id)?;
        subjects.push(Subject { id, disk, policies });
    }
    for subject in &mut subjects {
        let node = format!("n-{}", subject.id);
        // One place for each, so that nobody takes the error of one for that of another.
        let mut number = 0;
        for operation in OPERATIONS {
            for errno in errnos() {
                let case = subject.case(operation, errno);
                let rule = json!({ "event": "none", "iotype": operation, "errno": errno,
                    "once": true });
                server.inject(&node, rule)?;
                number += 1;
                subject.submit(operation, errno % 2 == 0, number)?;
                let checked = subject.check(&mut server, &case, number, |_| Ok(()));
                checked.with_context(|| format!("{}: {case:?}", subject.id))?;
            }
        }
    }
    let others = check_other_events(&server, &subjects)?;
    ensure!(others > 0, "no event of 'report' or 'ignore'");
    drop(subjects);
    server.finish()
}

/// What the `file` driver makes of what a file system says, before policy sees it.
fn is_overcome(operation: &str, errno: i32) -> bool {
    // It cannot: EPERM EBUSY ENODEV EINVAL ENOTTY EOPNOTSUPP.
    matches!(operation, "discard" | "write-zeroes") && matches!(errno, 1 | 16 | 19 | 22 | 25 | 95)
}

/// The file system itself says it: nothing is lost on the way up.
#[test]
fn said_by_a_file_system() -> Result<()> {
    let fuse = FuseFile::new(usize::try_from(DISK_BYTES)?)?;
    let policies = ("stop", "stop");
    let mut server = Setup::new()?
        .blockdev(
            &json!({ "driver": "file", "node-name": "disk0", "filename": fuse.path(),
            "discard": "unmap", "cache": { "direct": true } }),
        )
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop", "hold-scope": "request" }),
        )
        .start()?;
    let disk = server.disk("vda")?;
    let id = "vda".to_owned();
    let mut subject = Subject { id, disk, policies };
    let mut number = 0;
    for (operation, op) in [
        ("read", FuseOp::Read),
        ("write", FuseOp::Write),
        ("flush", FuseOp::Fsync),
        ("discard", FuseOp::Fallocate),
        ("write-zeroes", FuseOp::Fallocate),
    ] {
        // FUSE takes ENOSYS for itself, for ever; ENOTTY and EOPNOTSUPP of fallocate are remembered.
        let last = [25, 95];
        let others = errnos().filter(|errno| *errno != 38 && !last.contains(errno));
        for errno in others.chain(last) {
            let case = subject.case(operation, errno);
            fuse.fail(op, errno);
            number += 1;
            subject.submit(operation, errno % 2 == 0, number)?;
            if is_overcome(operation, errno) {
                ensure!(subject.success()?, "{case:?}");
                fuse.fail(op, 0);
                continue;
            }
            let checked = subject.check(&mut server, &case, number, |_| {
                fuse.fail(op, 0);
                Ok(())
            });
            checked.with_context(|| format!("{case:?}"))?;
        }
    }
    drop(subject);
    server.finish()
}

/// A device that has shrunk, or is gone, was reported as full: a manager extended a healthy volume for
/// ever. It stops the VM all the same, and goes on when the device is back.
#[test]
fn said_by_linux_of_a_device_that_has_vanished() -> Result<()> {
    for left in [0, DISK_BYTES / 4] {
        let setup = Setup::new()?;
        let image = setup.path("device.img");
        sparse(&image, DISK_BYTES)?;
        let device = LoopDevice::new(&image, false)?;
        // werror is enospc.
        let mut server = setup
            .blockdev(&json!({ "driver": "host_device", "node-name": "disk0",
                "filename": device.path(), "discard": "unmap", "cache": { "direct": true } }))
            .export(
                "vda",
                "disk0",
                json!({ "rerror": "stop", "hold-scope": "request" }),
            )
            .start()?;
        let disk = server.disk("vda")?;
        let mut subject = Subject {
            id: "vda".to_owned(),
            disk,
            policies: ("enospc", "stop"),
        };
        let resize = |bytes| {
            let file = std::fs::File::options().write(true).open(&image)?;
            file.set_len(bytes)?;
            device.update_size()
        };
        for (number, (operation, errno)) in [
            ("write", 28),
            ("read", 5),
            ("write-zeroes", 28),
            ("discard", 22),
        ]
        .into_iter()
        .enumerate()
        {
            resize(left)?;
            let mut case = subject.case(operation, errno);
            case.vanished = true;
            let number = 1024 + number as u64;
            subject.submit(operation, true, number)?;
            subject
                .check(&mut server, &case, number, |_| resize(DISK_BYTES))
                .with_context(|| format!("{left} bytes left, {case:?}"))?;
        }
        let deadline = Instant::now() + PATIENCE;
        while !server
            .daemon
            .stderr()
            .contains("(backing-gone); 'cont' tries again")
        {
            ensure!(Instant::now() < deadline, "the log tells the cause, too");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(subject);
        server.finish()?;
    }
    Ok(())
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
