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

/// Aborts the process when a thread of this name unwinds.
pub(crate) struct AbortOnPanic<'a>(&'a str);

impl<'a> AbortOnPanic<'a> {
    pub(crate) fn new(name: &'a str) -> AbortOnPanic<'a> {
        AbortOnPanic(name)
    }
}

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            abort(&format!("iothread {}: panicked; aborting", self.0));
        }
    }
}
