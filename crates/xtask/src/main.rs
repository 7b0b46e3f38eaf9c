//! Every developer command; CI runs exactly these.
fn main() {}
