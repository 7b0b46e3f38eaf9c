//! What is said when the process aborts.

use std::sync::OnceLock;

static SAY: OnceLock<fn(&str)> = OnceLock::new();

/// From now on `say` gets what is said before an abort, instead of stderr: whoever has a log knows how
/// to get it out, and how not to wait for ever for a stderr that nobody reads. The first one counts.
pub fn set_last_words(say: fn(&str)) {
    // A second one is not heard.
    let _ = SAY.set(say);
}

/// Says `text` and aborts the process.
pub(crate) fn abort(text: &str) -> ! {
    match SAY.get() {
        Some(say) => say(&format!("{text}\n")),
        None => eprintln!("{text}"),
    }
    std::process::abort()
}
