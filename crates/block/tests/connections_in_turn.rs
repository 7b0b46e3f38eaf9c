//! Clients that come and go all day leave nothing behind: no memory, no thread, no time in a query.
//!
//! A target of its own, because it measures the process.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "the whole file is a test"
)]

#[path = "connections/world.rs"]
#[allow(dead_code, reason = "the other target uses all of it")]
mod world;

use std::sync::Arc;

use standfast_block::{Backend, HoldScope, LocalBackend, Status};

use world::{Front, THREADS, World, front_client, write};

const CONNECTIONS: usize = 10_000;
/// Of which memory is measured after the first ones: by then all that is kept for use again is there.
const WARM: usize = 2_000;
/// A few kilobytes each would be 40 times that.
const GROWTH_MAX: usize = 1 << 20;

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// A client comes, writes, has something held, and leaves, one way or another.
async fn come_and_go(backend: &Arc<Backend>, number: usize) {
    let connection = backend.connect().await.unwrap();
    let front = Arc::new(Front::default());
    let client = front_client(&front);
    let part = LocalBackend::open(&connection, client, 1).await.unwrap();
    let fails = number.is_multiple_of(8);
    part.submit(write(0, 0, 512));
    part.submit(write(1, 4096, 512));
    if fails {
        part.submit(write(2, world::BROKEN, 512));
        part.submit(write(3, world::BROKEN, 512));
    }
    match number % 3 {
        0 => connection.close().await,
        1 => drop(connection),
        _ => part.clone().close().await,
    }
    // Until a connection that was dropped has ended.
    part.close().await;
    let told = front.told();
    assert_eq!((told.completed.len(), told.failed.len()), (2, 0));
    assert_eq!(told.dropped.len(), if fails { 2 } else { 0 });
}

fn come_and_go_on_all(world: &World, numbers: std::ops::Range<usize>) {
    let (told, done) = std::sync::mpsc::channel();
    for (first, thread) in (0..).zip(&world.threads) {
        let (backend, numbers) = (Arc::clone(&world.backend), numbers.clone());
        let told = told.clone();
        let all = move || async move {
            for number in numbers.skip(first).step_by(THREADS) {
                come_and_go(&backend, number).await;
            }
            told.send(()).unwrap();
        };
        thread.handle().spawn(all).unwrap();
    }
    drop(told);
    // Neither has ended early.
    assert_eq!(done.iter().count(), THREADS);
}

#[test]
fn ten_thousand_clients_leave_nothing_behind() {
    let world = World::new(HoldScope::Request);
    world.storage.be_quiet();
    let stays = world.client();
    stays.submit(0, write(0, 8192, 512));
    stays.wait_completed(&[0]);
    come_and_go_on_all(&world, 0..WARM);
    let parts = world.reached();
    let (memory, before) = (resident_bytes(), threads());
    come_and_go_on_all(&world, WARM..CONNECTIONS);
    let growth = resident_bytes().saturating_sub(memory);
    assert!(growth < GROWTH_MAX, "{growth} bytes more");
    assert_eq!(threads(), before);

    // What is looked through for a query is what lives.
    assert_eq!(world.reached(), parts);
    assert_eq!(world.state(|state| state.accounting().live()), THREADS);
    assert_eq!(world.backend.connections(), 1);
    assert_eq!(world.incident(), None);
    assert_eq!(world.status(), Some(Status::Nospace));
    // What is counted is what was.
    let stats = world.backend.stats();
    let failing = (CONNECTIONS as u64).div_ceil(8);
    let executed = 2 * CONNECTIONS as u64 + 1;
    assert_eq!(stats.wr.operations, executed);
    assert_eq!(stats.wr.bytes, 512 * executed);
    assert_eq!(stats.dropped, 2 * failing);
    // The second one waits behind the first, or both behind another client's.
    assert!((1..=failing).contains(&stats.holds), "{stats:?}");
    assert_eq!(stats.attempts, executed + stats.holds);
    assert!(stats.idle.unwrap() < world::SECONDS);
    stays.leave();
    world.end();
}
