//! What is said of storage that fails: once when it begins, once when it goes well again.

use std::time::{Duration, Instant};

/// How often a beginning may be told: storage that is full and not full by turns is no flood.
const ONE_PER: Duration = Duration::from_secs(60);

/// What to say.
#[derive(Debug, PartialEq, Eq)]
pub enum Say {
    /// Nothing: it is known, or not worth it.
    Nothing,
    /// It fails.
    Fails,
    /// It goes well again.
    Well,
}

/// Whether the storage fails, and whether that was told.
#[derive(Debug, Default)]
pub struct Trouble {
    fails: bool,
    told: bool,
    last_told: Option<Instant>,
}

impl Trouble {
    /// An attempt has succeeded or not.
    pub fn tried(&mut self, well: bool, now: Instant) -> Say {
        if well {
            self.fails = false;
            return match std::mem::take(&mut self.told) {
                true => Say::Well,
                false => Say::Nothing,
            };
        }
        self.fails = true;
        let recently = |told: Instant| now.saturating_duration_since(told) < ONE_PER;
        if self.told || self.last_told.is_some_and(recently) {
            return Say::Nothing;
        }
        self.told = true;
        self.last_told = Some(now);
        Say::Fails
    }

    /// Whether the last attempt failed.
    pub fn fails(&self) -> bool {
        self.fails
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_told_once_and_when_it_is_over() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        assert_eq!(trouble.tried(true, start), Say::Nothing);
        assert_eq!(trouble.tried(false, start), Say::Fails);
        for second in 1..1000 {
            let now = start + Duration::from_secs(second);
            assert_eq!(trouble.tried(false, now), Say::Nothing);
        }
        assert!(trouble.fails());
        let later = start + Duration::from_secs(1000);
        assert_eq!(trouble.tried(true, later), Say::Well);
        assert_eq!(trouble.tried(true, later), Say::Nothing);
        assert_eq!(trouble.tried(false, later), Say::Fails);
    }

    #[test]
    fn what_comes_and_goes_is_told_once_a_minute() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        let mut said = 0;
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            said += u32::from(trouble.tried(false, now) == Say::Fails);
            said += u32::from(trouble.tried(true, now) == Say::Well);
        }
        assert_eq!(said, 20);
        // What was kept back is told when it lasts.
        let now = start + Duration::from_secs(600);
        assert_eq!(trouble.tried(false, now), Say::Fails);
    }
}
