//! Several clients on one backend: what one takes with it when it leaves, and what stays.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "the whole file is a test"
)]

#[allow(dead_code, reason = "another target uses the rest")]
mod world;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};

use pollster::block_on;
use standfast_block::{Connection, HoldScope, LocalBackend, RunState, Status};

use world::{A_WHILE, Guest, Seen, THREADS, Told, World, front_client, wait_until, write};

const BLOCK: u64 = 4096;
const SCOPES: [HoldScope; 3] = [HoldScope::Vm, HoldScope::Device, HoldScope::Request];

/// Two writes of each of two clients, one on each iothread, fail at once: all four are held. Of the first
/// they are blocks 0 and 1, of the second 2 and 3.
fn hold(world: &World, clients: [&Guest<'_>; 2]) {
    (0..4).for_each(|block| world.storage.hang(block * BLOCK));
    for (number, client) in (0..).zip(clients) {
        for (thread, block) in (0..THREADS).zip(2 * number..) {
            let head = u16::try_from(block).unwrap();
            client.submit(thread, write(head, block * BLOCK, BLOCK));
        }
    }
    world.storage.fail(libc::ENOSPC);
    world.storage.let_go();
    wait_until("four held requests", || world.held().len() == 4);
    world.storage.forget();
}

fn dropped(heads: &[u16]) -> Told {
    Told {
        dropped: heads.to_vec(),
        ..Told::default()
    }
}

fn sorted(mut told: Told) -> Told {
    for heads in [&mut told.completed, &mut told.failed, &mut told.dropped] {
        heads.sort_unstable();
    }
    told
}

/// What was held of one client had no owner of its own: it could only be dropped with all others'.
#[test]
fn what_one_holds_goes_with_it_and_what_another_holds_stays() {
    for scope in SCOPES {
        let world = World::new(scope);
        let (a, b) = (world.client(), world.client());
        hold(&world, [&a, &b]);
        let (incident, generation) = (world.incident(), world.state(|s| s.generation()));
        let state = world.run_state();
        assert!(incident.is_some());

        let (front, told) = a.leave();
        assert_eq!(sorted(told), dropped(&[0, 1]), "{scope:?}");
        assert_eq!(world.held(), [2 * BLOCK, 3 * BLOCK]);
        assert_eq!(world.dropped(), 2);
        assert_eq!(world.incident(), incident, "it goes on");
        assert_eq!(world.status(), Some(Status::Nospace));
        assert_eq!(world.state(|s| s.generation()), generation);
        assert_eq!(world.run_state(), state);
        assert_eq!(b.front.told(), Told::default());
        let freezes = scope != HoldScope::Request;
        assert_eq!(b.may_pop(), [!freezes; THREADS], "{scope:?}");

        world.storage.fail(0);
        world.cont();
        b.wait_completed(&[2, 3]);
        wait_until("the end of the incident", || world.incident().is_none());
        assert_eq!(world.status(), Some(Status::Ok));
        // Whatever could come twice would have come by now.
        assert_eq!(b.leave().1.completed.len(), 2);
        assert_eq!(sorted(front.told()), dropped(&[0, 1]));
        let mut seen = world.storage.seen();
        seen.sort_unstable();
        let [two, three] = [2, 3].map(|block| block * BLOCK);
        let began = [Seen::Began(two, BLOCK), Seen::Began(three, BLOCK)];
        let ended = [Seen::Ended(two, BLOCK), Seen::Ended(three, BLOCK)];
        assert_eq!(seen, [began, ended].concat());
        let stats = world.backend.stats();
        assert_eq!((stats.wr.operations, stats.holds, stats.dropped), (2, 4, 2));
        world.end();
    }
}

#[test]
fn the_incident_ends_with_the_last_one_who_holds() {
    for scope in SCOPES {
        for first_leaves_first in [true, false] {
            let world = World::new(scope);
            let (a, b) = (world.client(), world.client());
            let c = world.client();
            hold(&world, [&a, &b]);
            let (one, other) = if first_leaves_first { (a, b) } else { (b, a) };
            one.leave();
            assert!(world.incident().is_some());
            other.leave();
            assert_eq!(world.incident(), None, "{scope:?}");
            assert!(world.held().is_empty());
            assert_eq!(world.dropped(), 4);
            assert_eq!(world.status(), Some(Status::Nospace), "until a cont");
            // The freeze ends with what it was for; the run state does not.
            let stopped = scope == HoldScope::Vm;
            let state = if stopped {
                RunState::IoError
            } else {
                RunState::Running
            };
            assert_eq!(world.run_state(), state);
            world.storage.fail(0);
            wait_until("the end of the freeze", || {
                c.may_pop() == [!stopped; THREADS]
            });
            c.submit(0, write(9, 0, BLOCK));
            if stopped {
                std::thread::sleep(A_WHILE);
                assert_eq!(c.front.told(), Told::default());
                world.cont();
            }
            c.wait_completed(&[9]);
            c.leave();
            world.end();
        }
    }
}

/// Scope `device`: one client holds, and the other is frozen because of it.
#[test]
fn a_freeze_ends_when_who_caused_it_leaves() {
    let world = World::new(HoldScope::Device);
    let (a, b) = (world.client(), world.client());
    world.storage.fail(libc::EIO);
    a.submit(0, write(0, 0, BLOCK));
    wait_until("a freeze", || b.may_pop() == [false; THREADS]);
    world.storage.fail(0);
    b.submit(0, write(1, BLOCK, BLOCK));
    b.submit(1, write(2, 2 * BLOCK, BLOCK));
    std::thread::sleep(A_WHILE);
    assert_eq!(b.front.told(), Told::default());
    a.leave();
    b.wait_completed(&[1, 2]);
    assert_eq!(world.status(), Some(Status::Failed));
    b.leave();
    world.end();
}

/// G5 holds among all clients of a backend.
#[test]
fn a_write_waits_behind_what_another_client_holds() {
    for leaves in [true, false] {
        let world = World::new(HoldScope::Request);
        let (a, b) = (world.client(), world.client());
        world.storage.fail(libc::ENOSPC);
        a.submit(0, write(0, 0, BLOCK));
        wait_until("a held request", || world.held() == [0]);
        world.storage.fail(0);
        world.storage.forget();
        // On the other iothread, on the same one, and beside it.
        b.submit(1, write(1, 512, 512));
        b.submit(0, write(2, 1024, 512));
        b.submit(1, write(3, BLOCK, 512));
        b.wait_completed(&[3]);
        std::thread::sleep(A_WHILE);
        b.wait_completed(&[3]);
        if leaves {
            assert_eq!(a.leave().1, dropped(&[0]));
        } else {
            world.cont();
            a.wait_completed(&[0]);
            a.leave();
        }
        b.wait_completed(&[1, 2, 3]);
        let seen = world.storage.seen();
        let held = seen.iter().position(|seen| *seen == Seen::Ended(0, BLOCK));
        let behind = seen.iter().position(|seen| *seen == Seen::Began(512, 512));
        assert_eq!(held.is_none(), leaves, "{seen:?}");
        assert!(held < behind, "{seen:?}");
        b.leave();
        world.end();
    }
}

/// A client that is gone cannot be asked whether it still wants what hangs; and when it is back, its
/// new data must not be found under the old.
#[test]
fn what_hangs_of_a_client_that_has_left_is_in_the_way_until_it_ends() {
    let world = World::new(HoldScope::Request);
    let (a, b) = (world.client(), world.client());
    // Held by the one that stays, and, under it, the write that is going to hang. One more of the
    // latter is held first, and hangs when it is tried again.
    world.storage.fail(libc::ENOSPC);
    b.submit(0, write(0, 512, 512));
    a.submit(1, write(1, 8 * BLOCK, BLOCK));
    wait_until("two held requests", || world.held().len() == 2);
    world.storage.fail(0);
    world.storage.hang(8 * BLOCK);
    world.storage.hang(4 * BLOCK);
    world.cont();
    b.wait_completed(&[0]);
    a.submit(0, write(2, 4 * BLOCK, BLOCK));
    a.submit(1, write(3, 5 * BLOCK, BLOCK));
    wait_until("a retry", || {
        let retried = Seen::Began(8 * BLOCK, BLOCK);
        (world.storage.seen().iter())
            .filter(|seen| **seen == retried)
            .count()
            == 2
    });
    a.wait_completed(&[3]);
    world.storage.forget();

    // Returns although it hangs: it is not told of more, neither now nor later.
    let (front, told) = a.leave();
    assert_eq!((told.completed, told.dropped), (vec![3], vec![]));
    assert_eq!(world.incident(), None);
    assert!(world.held().is_empty());

    for (head, offset) in [(4, 4 * BLOCK + 512), (5, 8 * BLOCK), (6, 5 * BLOCK)] {
        b.submit(usize::from(head) % THREADS, write(head, offset, 512));
    }
    // What fails while it waits to be tried again waits, too.
    b.wait_completed(&[0, 6]);
    std::thread::sleep(A_WHILE);
    b.wait_completed(&[0, 6]);

    // Drain and removal wait for what hangs.
    std::thread::scope(|scope| {
        let (told, done) = mpsc::channel();
        let backend = &world.backend;
        scope.spawn(move || {
            let drained = block_on(backend.drain());
            told.send(drained.furthest().copied()).unwrap();
        });
        assert!(done.recv_timeout(A_WHILE).is_err(), "drained too early");
        world.storage.let_go();
        let furthest = done.recv_timeout(world::SECONDS).unwrap().unwrap();
        assert_eq!(furthest.offset, 8 * BLOCK, "what waits");
    });
    b.wait_completed(&[0, 4, 5, 6]);
    let told = sorted(front.told());
    assert_eq!((told.completed, told.dropped), (vec![3], vec![1, 2]));
    assert_eq!(world.dropped(), 2);
    let seen = world.storage.seen();
    let at = |wanted: Seen| seen.iter().position(|seen| *seen == wanted).unwrap();
    assert!(at(Seen::Ended(4 * BLOCK, BLOCK)) < at(Seen::Began(4 * BLOCK + 512, 512)));
    assert!(at(Seen::Ended(8 * BLOCK, BLOCK)) < at(Seen::Began(8 * BLOCK, 512)));
    b.leave();
    world.end();
}

/// A write that was held before the other one hung: by its number it would go first.
#[test]
fn what_is_held_waits_for_what_hangs_of_a_client_that_has_left() {
    let world = World::new(HoldScope::Request);
    let (b, a) = (world.client(), world.client());
    world.storage.hang(0);
    a.submit(1, write(7, 0, 2 * BLOCK));
    world.storage.fail(libc::ENOSPC);
    b.submit(0, write(0, BLOCK, BLOCK));
    wait_until("a held request", || world.held() == [BLOCK]);
    world.storage.fail(0);
    a.leave();
    assert_eq!(world.held(), [BLOCK]);
    world.storage.forget();
    world.cont();
    std::thread::sleep(A_WHILE);
    assert_eq!(world.storage.seen(), []);
    // The second one is put behind the first, which waits.
    b.submit(1, write(1, BLOCK, 512));
    world.storage.let_go();
    b.wait_completed(&[0, 1]);
    let order = [
        Seen::Ended(0, 2 * BLOCK),
        Seen::Began(BLOCK, BLOCK),
        Seen::Ended(BLOCK, BLOCK),
        Seen::Began(BLOCK, 512),
        Seen::Ended(BLOCK, 512),
    ];
    assert_eq!(world.storage.seen(), order);
    b.leave();
    world.end();
}

/// The removal of a backend found nothing in flight, because who had it in flight was gone.
#[test]
fn removal_waits_for_what_hangs() {
    let world = World::new(HoldScope::Vm);
    let a = world.client();
    world.storage.hang(0);
    a.submit(0, write(0, 0, BLOCK));
    let (front, told) = a.leave();
    assert_eq!(told, Told::default());
    let storage = Arc::clone(&world.storage);
    std::thread::scope(|scope| {
        let (told, done) = mpsc::channel();
        scope.spawn(move || {
            world.end();
            told.send(()).unwrap();
        });
        assert!(done.recv_timeout(A_WHILE).is_err(), "removed too early");
        storage.let_go();
        done.recv_timeout(world::SECONDS).unwrap();
    });
    assert_eq!(front.told(), dropped(&[0]));
}

#[test]
fn the_first_client_attaches_and_no_other_resets_anything() {
    let world = World::new(HoldScope::Vm);
    assert_eq!(world.status(), None, "no device yet");
    let a = world.client();
    assert_eq!(world.status(), Some(Status::Ok));
    let generation = world.state(|s| s.generation());
    world.storage.fail(libc::ENOSPC);
    a.submit(0, write(0, 0, BLOCK));
    wait_until("a stop", || world.run_state() == RunState::IoError);
    world.storage.fail(0);

    // In the middle of the incident.
    let b = world.client();
    assert_eq!(world.backend.connections(), 2);
    assert_eq!(world.status(), Some(Status::Nospace));
    assert_eq!(
        world.state(|s| (s.generation(), s.incidents())),
        (generation, 1)
    );
    assert_eq!(world.held(), [0]);
    assert_eq!(b.may_pop(), [false; THREADS], "frozen from its beginning");
    b.submit(1, write(1, 4 * BLOCK, BLOCK));
    b.submit(0, write(2, 0, 512));
    std::thread::sleep(A_WHILE);
    assert_eq!(b.front.told(), Told::default());
    world.storage.forget();
    world.cont();
    a.wait_completed(&[0]);
    b.wait_completed(&[1, 2]);
    let seen = world.storage.seen();
    let at = |wanted: Seen| seen.iter().position(|seen| *seen == wanted).unwrap();
    assert!(at(Seen::Ended(0, BLOCK)) < at(Seen::Began(0, 512)));
    a.leave();
    b.leave();

    // All have left: the device is still the same.
    let c = world.client();
    assert_eq!(world.state(|s| s.generation()), generation);
    assert_eq!(world.backend.connections(), 1);
    c.leave();
    // What attaches says so, and it reaches all.
    let (d, e) = (world.client(), world.client());
    hold(&world, [&d, &e]);
    let attached = block_on(world.backend.attach()).unwrap();
    assert_eq!(attached, generation + 1);
    assert_eq!(sorted(d.leave().1), dropped(&[0, 1]));
    assert_eq!(sorted(e.leave().1), dropped(&[2, 3]));
    assert_eq!(world.status(), Some(Status::Ok));
    world.end();
}

/// A part that opened while all others were drained knew nothing of it, and wrote.
#[test]
fn who_comes_during_a_drain_is_drained() {
    let world = World::new(HoldScope::Vm);
    let a = world.client();
    let outer = block_on(world.backend.drain());
    let inner = block_on(world.backend.drain());
    let b = world.client();
    for client in [&a, &b] {
        client.submit(0, write(0, 0, 512));
        client.submit(1, write(1, BLOCK, 512));
    }
    let c = world.client();
    c.submit(0, write(0, 2 * BLOCK, 512));
    // One leaves meanwhile, with what waits.
    assert_eq!(sorted(a.leave().1), dropped(&[0, 1]));
    drop(outer);
    std::thread::sleep(A_WHILE);
    assert_eq!(b.may_pop(), [false; THREADS]);
    assert_eq!(world.storage.seen(), []);
    let again = block_on(world.backend.drain());
    assert_eq!(again.furthest().unwrap().offset, 2 * BLOCK);
    drop(inner);
    drop(again);
    b.wait_completed(&[0, 1]);
    c.wait_completed(&[0]);
    assert_eq!(b.may_pop(), [true; THREADS]);
    b.leave();
    c.leave();
    world.end();
}

/// Whoever opened a part and stopped waiting, or came when the backend was gone, left it in run control, in
/// the counters and among those that are drained.
#[test]
fn a_part_that_is_never_open_leaves_nothing_behind() {
    let world = World::new(HoldScope::Vm);
    let a = world.client();
    let before = (world.reached(), world.backend.stats());
    let open = |connection: &Arc<Connection>, given_up: bool| {
        let connection = Arc::clone(connection);
        let open = move || async move {
            let client = front_client(&Arc::default());
            let mut opens = pin!(LocalBackend::open(&connection, client, 1));
            poll_fn(|cx| match opens.as_mut().poll(cx) {
                Poll::Pending if !given_up => Poll::Pending,
                polled => Poll::Ready(matches!(polled, Poll::Ready(Some(_)))),
            })
            .await
        };
        world.threads[0].handle().run_blocking(open).unwrap()
    };
    let connection = Arc::new(block_on(world.backend.connect()).unwrap());
    // Run control stands still, so that none of them is open in time.
    let (go_on, told) = mpsc::channel::<()>();
    let mut stands = Box::pin(world.control.call(move |_, _| told.recv().unwrap()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(stands.as_mut().poll(&mut cx).is_pending());
    for _ in 0..4 {
        assert!(!open(&connection, true));
    }
    go_on.send(()).unwrap();
    block_on(stands).unwrap();
    assert_eq!(world.state(|state| state.accounting().live()), THREADS);
    assert_eq!((world.reached(), world.backend.stats()), before);
    drop(block_on(world.backend.drain()));
    a.leave();
    // The backend is gone.
    block_on(async {
        world.backend.detach().await;
        world.backend.remove().await;
    });
    let none = world.reached();
    assert!(!open(&connection, false));
    assert_eq!(world.reached(), none);
    drop(connection);
    world.end();
}

#[test]
fn who_leaves_or_comes_while_all_is_stopped() {
    let world = World::new(HoldScope::Vm);
    let (a, b) = (world.client(), world.client());
    block_on(world.control.stop()).unwrap();
    for client in [&a, &b] {
        wait_until("a freeze", || client.may_pop() == [false; THREADS]);
        client.submit(0, write(0, 0, 512));
        client.submit(1, write(1, 0, 512));
    }
    assert_eq!(sorted(a.leave().1), dropped(&[0, 1]));
    let c = world.client();
    c.submit(1, write(2, 0, 512));
    std::thread::sleep(A_WHILE);
    assert_eq!(world.storage.seen(), []);
    assert_eq!(world.run_state(), RunState::Paused);
    world.cont();
    b.wait_completed(&[0, 1]);
    c.wait_completed(&[2]);
    b.leave();
    c.leave();
    world.end();
}

/// Whoever has the part of a connection that has ended finds it closed, not open for ever.
#[test]
fn nothing_is_taken_after_the_end() {
    let world = World::new(HoldScope::Request);
    let a = world.client();
    world.storage.hang(0);
    a.submit(0, write(0, 0, 512));
    block_on(a.connection.close());
    assert_eq!(a.may_pop(), [false; THREADS]);
    a.submit(0, write(1, BLOCK, 512));
    a.submit(1, write(2, BLOCK, 512));
    assert_eq!(sorted(a.front.told()), dropped(&[1, 2]));
    // Again, and then by its drop.
    block_on(a.connection.close());
    world.storage.let_go();
    wait_until("the end", || a.front.told().dropped.len() == 3);
    assert_eq!(world.storage.seen().len(), 2);
    a.leave();
    // A connection that is dropped ends, too.
    let b = world.client();
    let front = Arc::clone(&b.front);
    world.storage.fail(libc::ENOSPC);
    b.submit(0, write(0, 0, 512));
    wait_until("a held request", || world.held() == [0]);
    drop(b);
    wait_until("its end", || world.incident().is_none());
    assert_eq!(front.told(), dropped(&[0]));
    world.end();
}
