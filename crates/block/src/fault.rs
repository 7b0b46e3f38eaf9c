//! The fault plan: which operations fail, when, and with which errno.

/// A plan of faults to inject.
#[derive(Debug, Default)]
pub struct FaultPlan {}
