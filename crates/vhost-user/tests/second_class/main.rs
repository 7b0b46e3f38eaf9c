//! A device that is no disk, over the same transport: several request queues and an event queue, answers
//! of two words, nothing of the block layer.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod echo;
mod guest;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use echo::{EMIT, EVENTS, Echo, EchoPart, HOLD, INVERT, OK, QUEUES, SLOW, SUM, Told, UNKNOWN};
use frontend::protocol::message;
use guest::Guest;
use iothread::{Config, IoThread};
use listener::{Access, bind_socket};
use standfast_vhost_user::{DeviceHandle, Served, Shape};

struct Daemon {
    served: Served<EchoPart>,
    device: DeviceHandle<EchoPart>,
    told: Arc<Told>,
    path: PathBuf,
    _iothread: IoThread,
    _dir: tempfile::TempDir,
}

impl Daemon {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("echo");
        let iothread = IoThread::spawn(Config::default()).unwrap();
        let told = Arc::new(Told::default());
        let shape = Shape {
            id: "echo0".to_owned(),
            queues: QUEUES,
            queue_size_max: 64,
            configure_mem_slots: false,
        };
        let kept = Mutex::new(None);
        let echo = |device: DeviceHandle<EchoPart>| {
            *kept.lock().unwrap() = Some(device.clone());
            let told = Arc::clone(&told);
            Echo {
                device,
                told,
                recorded: false,
                byte: 5,
            }
        };
        let socket = bind_socket(&path, Access::default()).unwrap();
        let iothreads = [iothread.handle()];
        let served = Served::open(shape, &told, &iothreads, socket, echo);
        let served = pollster::block_on(served).unwrap();
        Self {
            served,
            device: kept.into_inner().unwrap().unwrap(),
            told,
            path,
            _iothread: iothread,
            _dir: dir,
        }
    }

    fn guest(&self) -> Guest {
        Guest::new(&self.path)
    }

    /// Returns when all that came before has been handled.
    fn go_on(&self) {
        self.device.on_parts(EchoPart::go_on).unwrap();
    }

    fn life(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.life.lock().unwrap())
    }

    fn close(self) {
        assert!(pollster::block_on(self.served.close()));
        assert!(!pollster::block_on(self.served.close()));
    }
}

fn until(condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn requests_of_several_queues() {
    let daemon = Daemon::new();
    let mut guest = daemon.guest();
    for queue in 0..EVENTS {
        guest.request(queue, 0, INVERT, 9);
        assert_eq!(guest.wait(queue), (0, !9, OK));
        guest.request(queue, 2, 99, 0);
        assert_eq!(guest.wait(queue), (2, 0, UNKNOWN));
        guest.put(
            queue,
            4,
            &[&SUM.to_le_bytes()[..], &[0; 8], &[200; 100]].concat(),
            16,
        );
        assert_eq!(guest.wait(queue), (4, 20_000, OK));
    }
    assert!(daemon.served.has_client());
    assert_eq!(daemon.served.trouble(), None);
    assert_eq!(daemon.life(), ["attach"]);
    daemon.close();
}

/// What the driver offers for events waits for them, and nobody waits for that.
#[test]
fn events_come_when_there_are_some() {
    let daemon = Daemon::new();
    let mut guest = daemon.guest();
    for head in [0, 2] {
        guest.room(EVENTS, head);
    }
    guest.request(0, 0, EMIT, 70);
    assert_eq!(guest.wait(0), (0, 0, OK));
    assert_eq!(guest.wait(EVENTS), (0, 70, OK));
    // The VM is stopped and goes on: the other room is still there.
    guest.stop();
    assert_eq!(guest.used(EVENTS), None);
    guest.start();
    for (head, event) in [(2, 71), (4, 72)] {
        guest.request(1, head, EMIT, event);
        assert_eq!(guest.wait(1), (head, 0, OK));
    }
    assert_eq!(guest.wait(EVENTS), (2, 71, OK));
    assert_eq!(guest.used(EVENTS), None, "there is no room");
    guest.room(EVENTS, 4);
    assert_eq!(guest.wait(EVENTS), (4, 72, OK));
    daemon.close();
}

#[test]
fn what_is_held_stays_and_what_is_in_flight_ends() {
    let daemon = Daemon::new();
    let mut guest = daemon.guest();
    guest.request(0, 0, HOLD, 1);
    guest.request(1, 0, HOLD, 2);
    for queue in 0..EVENTS {
        // What is before it has been taken as well.
        guest.request(queue, 2, INVERT, 0);
        assert_eq!(guest.wait(queue), (2, !0, OK));
    }
    guest.request(0, 4, SLOW, 100);
    until(|| *daemon.told.slow.lock().unwrap() == 1);
    guest.stop();
    assert_eq!(guest.used(0), Some((4, 100, OK)), "it was in flight");
    assert_eq!((guest.used(0), guest.used(1)), (None, None));
    daemon.go_on();
    assert_eq!(guest.used(0), None, "the ring is stopped");
    guest.reconnect(&daemon.path);
    assert_eq!(guest.wait(0), (0, 1, OK));
    assert_eq!(guest.wait(1), (0, 2, OK));
    daemon.close();
}

/// Another process serves the device: the client's region is all that is left.
#[test]
fn a_region_is_all_that_another_daemon_needs() {
    let former = Daemon::new();
    let mut guest = former.guest();
    let config = [0_u32, 1, 0].map(u32::to_ne_bytes);
    let mut set = config.as_flattened().to_vec();
    set.push(9);
    guest
        .connection()
        .set(message::SET_CONFIG, &set, &[])
        .unwrap();
    *set.last_mut().unwrap() = 0;
    assert!(
        guest
            .connection()
            .set(message::SET_CONFIG, &set, &[])
            .is_err()
    );
    guest.request(0, 0, HOLD, 1);
    guest.room(EVENTS, 0);
    guest.request(0, 2, INVERT, 0);
    assert_eq!(guest.wait(0), (2, !0, OK));
    guest.stop();
    former.close();
    let daemon = Daemon::new();
    assert!(daemon.served.may_hand_back().is_some());
    guest.reconnect(&daemon.path);
    assert_eq!(daemon.served.may_hand_back(), None);
    assert_eq!(daemon.life(), ["reattach", "handed back"]);
    let mut get = config.as_flattened().to_vec();
    get.push(0);
    let byte = guest.connection().get(message::GET_CONFIG, &get).unwrap();
    assert_eq!(byte.payload.last(), Some(&9), "it was noted in the region");
    assert_eq!(
        (guest.used(0), *daemon.told.held.lock().unwrap()),
        (None, 1)
    );
    daemon.go_on();
    assert_eq!(guest.wait(0), (0, 1, OK));
    guest.request(1, 0, EMIT, 3);
    assert_eq!(guest.wait(EVENTS), (0, 3, OK));
    daemon.close();
}

/// The class hears, once, that nothing more comes of what a former daemon held.
#[test]
fn a_region_without_marks_says_that_nothing_comes() {
    let former = Daemon::new();
    let mut guest = former.guest();
    guest.request(0, 0, INVERT, 7);
    assert_eq!(guest.wait(0), (0, !7, OK));
    guest.stop();
    former.close();
    let daemon = Daemon::new();
    guest.reconnect(&daemon.path);
    assert_eq!(daemon.served.may_hand_back(), None);
    assert_eq!(daemon.life(), ["reattach", "nothing came"]);
    guest.stop();
    guest.reconnect(&daemon.path);
    assert!(daemon.life().is_empty());
    guest.reset();
    assert_eq!(daemon.life(), ["reset"]);
    daemon.close();
}

#[test]
fn a_reset_drops_what_is_held() {
    let daemon = Daemon::new();
    let mut guest = daemon.guest();
    guest.request(0, 0, HOLD, 1);
    guest.room(EVENTS, 0);
    guest.request(0, 2, INVERT, 0);
    assert_eq!(guest.wait(0), (2, !0, OK));
    guest.reset();
    assert_eq!(daemon.life(), ["attach", "reset"]);
    daemon.go_on();
    guest.request(0, 0, INVERT, 1);
    assert_eq!(guest.wait(0), (0, !1, OK));
    guest.request(0, 2, EMIT, 1);
    assert_eq!(guest.wait(0), (2, 0, OK));
    assert_eq!(
        guest.used(EVENTS),
        None,
        "the room is gone with the former life"
    );
    daemon.close();
}

#[test]
fn a_broken_queue_breaks_no_other() {
    let daemon = Daemon::new();
    let mut guest = daemon.guest();
    guest.request(EVENTS, 0, INVERT, 1);
    guest.request(0, 0, INVERT, 1);
    assert_eq!(guest.wait(0), (0, !1, OK));
    let reason = "request at descriptor 0: an event has nothing to read";
    let broken = format!("queue {EVENTS} broken: {reason}");
    until(|| daemon.told.life.lock().unwrap().len() == 2);
    assert_eq!(daemon.life(), ["attach".to_owned(), broken]);
    let trouble = daemon.served.trouble().unwrap();
    assert!(trouble.contains(reason), "{trouble}");
    daemon.close();
}
