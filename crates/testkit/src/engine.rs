//! The engine that a whole run of the tests is for.

/// The variable that names it.
pub const VARIABLE: &str = "STANDFAST_TEST_ENGINE";

/// Whether the run is for engine *threads*: then daemons find no io_uring, and tests take iothreads without
/// one where they do not say.
///
/// # Panics
/// If the variable says something else than `threads` or `io_uring`: the run would not be what it is called.
#[must_use]
pub fn is_threads() -> bool {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("" | "io_uring") => false,
        Ok("threads") => true,
        Ok(other) => panic!("{VARIABLE}={other}: it is io_uring or threads"),
    }
}
