//! The parts of `cargo xtask test`.

use clap::ValueEnum;

/// What can be run on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Formatting, clippy, and circles between files
    Check,
    /// Unit tests, integration tests without outside help, and the examples in the documentation
    Unit,
    /// Every interleaving of the mailbox
    Loom,
    /// Tests against real daemons, guests and file systems
    E2e,
    /// The differential corpus: command lines and conversations, against qemu-storage-daemon
    Qsd,
    /// What the README shows: build a release and run `standfast demo`
    Demo,
    /// Count the instructions per request of a release, and compare with what they were
    BenchGate,
    /// Build the fuzz targets and run each for some seconds
    FuzzSmoke,
}

impl Part {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .expect("no part is hidden")
            .get_name()
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_documented_names() {
        let names: Vec<_> = Part::value_variants()
            .iter()
            .map(|part| part.name())
            .collect();
        assert_eq!(
            names,
            [
                "check",
                "unit",
                "loom",
                "e2e",
                "qsd",
                "demo",
                "bench-gate",
                "fuzz-smoke"
            ]
        );
    }
}
