//! Wiring of the binaries.
