//! Who opens an image: one at a time, so that storage that hangs takes one thread, however often somebody
//! tries and gives up.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use block::OneBeside;
use parking_lot::Mutex;

/// By path, as long as somebody opens it or hangs there.
static TURNS: Mutex<BTreeMap<PathBuf, Weak<OneBeside>>> = Mutex::new(BTreeMap::new());

/// Runs `f`, a step of opening `path`, on a thread beside, when all others of that path have ended.
///
/// # Errors
/// As [`block::beside`].
pub async fn run<R: Send + 'static>(
    path: &Path,
    f: impl FnOnce() -> R + Send + 'static,
) -> io::Result<R> {
    let turns = of(path);
    // Whoever waits may give up, and the next one has to find what hangs.
    let kept = Arc::clone(&turns);
    let step = move || {
        let _kept = kept;
        f()
    };
    turns.run(step).await
}

fn of(path: &Path) -> Arc<OneBeside> {
    let mut all = TURNS.lock();
    all.retain(|_, turns| turns.strong_count() > 0);
    let known = all.get(path).and_then(Weak::upgrade);
    known.unwrap_or_else(|| {
        let turns = Arc::default();
        all.insert(path.to_owned(), Arc::downgrade(&turns));
        turns
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_has_been_opened_nothing_is_left() {
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let one = of(a);
        assert!(Arc::ptr_eq(&one, &of(a)) && !Arc::ptr_eq(&one, &of(b)));
        assert_eq!(pollster::block_on(run(a, || 7)).expect("runs"), 7);
        drop(one);
        let _ = of(b);
        assert!(!TURNS.lock().contains_key(a));
    }
}
