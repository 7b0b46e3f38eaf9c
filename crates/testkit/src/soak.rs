//! How much is done: little among other tests, much in a soak, which can be gone on with.

use std::ops::Range;

/// Whether this is a soak: `STANDFAST_SOAK` is in the environment.
#[must_use]
pub fn is_soak() -> bool {
    std::env::var_os("STANDFAST_SOAK").is_some()
}

/// `few`, or `many` in a soak.
#[must_use]
pub fn soak<T>(few: T, many: T) -> T {
    if is_soak() { many } else { few }
}

/// The rounds of a test, each of which decides by its number alone what it does: the first `few`, or `many` in a soak, from the round
/// `STANDFAST_SOAK_FROM` on.
#[must_use]
pub fn rounds(few: u64, many: u64) -> Range<u64> {
    let from = std::env::var("STANDFAST_SOAK_FROM").ok();
    match is_soak() {
        true => from.and_then(|from| from.parse().ok()).unwrap_or(0)..many,
        false => 0..few,
    }
}

/// These rounds in parts of `length` that begin with new images; the first may be the rest of one.
pub fn lives(rounds: Range<u64>, length: u64) -> impl Iterator<Item = Range<u64>> {
    let parts = rounds.start / length..rounds.end.div_ceil(length);
    parts.map(move |part| {
        let start = (part * length).max(rounds.start);
        start..((part + 1) * length).min(rounds.end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_all_rounds() {
        let all: Vec<_> = lives(7..25, 10).collect();
        assert_eq!(all, [7..10, 10..20, 20..25]);
        assert_eq!(lives(0..2, 10).next(), Some(0..2));
        assert_eq!(lives(20..20, 10).count(), 0);
    }
}
