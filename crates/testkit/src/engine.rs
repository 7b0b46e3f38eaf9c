//! The engine that a whole run of the tests is for.

/// The variable that names it.
pub const VARIABLE: &str = "STANDFAST_TEST_ENGINE";

/// Whether the run is for engine *threads*: then daemons find no io_uring, and tests take iothreads without
/// one where they do not say.
///
/// # Panics
/// If the variable says something else than `threads` or `io_uring`: the run would not be what it is called.
#[must_use]
#[expect(
    clippy::panic,
    reason = "a run that is not what it is called must not pass"
)]
pub fn is_threads() -> bool {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("" | "io_uring") => false,
        Ok("threads") => true,
        Ok(other) => panic!("{VARIABLE}={other}: it is io_uring or threads"),
    }
}

/// Runs all other tests of the calling test's binary once more, for engine *threads*: a suite whose tests take
/// their iothreads and daemons as a run says has one test, named `again_on_threads`, that calls this. In
/// such a run already, it is what runs.
///
/// # Panics
/// If one of them fails; with what they have written.
#[expect(clippy::panic, reason = "it is a test that has failed")]
pub fn again_on_threads() {
    if is_threads() {
        return;
    }
    let again = std::env::current_exe().and_then(|binary| {
        std::process::Command::new(binary)
            .args(["--skip", "again_on_threads"])
            .env(VARIABLE, "threads")
            .output()
    });
    match again {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "on threads: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!("it cannot be run again: {error}"),
    }
}
