//! What becomes of errors where an export does not say so.

use std::sync::atomic::{AtomicBool, Ordering};

use qapi::options::{ExportBase, OnError};

/// Ours, unless those of qemu-storage-daemon are asked for.
#[derive(Debug, Default)]
pub struct ErrorDefaults {
    reports: AtomicBool,
    /// Ours have been told of.
    told: AtomicBool,
}

impl ErrorDefaults {
    /// From now on errors are reported.
    pub fn report(&self) {
        self.reports.store(true, Ordering::Relaxed);
    }

    /// Fills in what is not said. Where ours lets a guest wait whose VMM was set up for another daemon, the
    /// log says so, once.
    pub fn fill(&self, base: &mut ExportBase) {
        if self.reports.load(Ordering::Relaxed) {
            base.werror.get_or_insert(OnError::Report);
            base.rerror.get_or_insert(OnError::Report);
        } else if base.werror.is_none()
            && base.writable == Some(true)
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "export '{}': a write that finds no space is held until there is some and somebody says \
                 'cont', as no werror is given; werror=report or --compat qsd hands the error to the guest",
                base.id
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qapi::options::ExportOptions;

    fn filled(defaults: &ErrorDefaults, said: &str) -> (Option<OnError>, Option<OnError>) {
        let text =
            format!("vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path=p{said}");
        let mut base = ExportOptions::parse(&text).unwrap().base;
        defaults.fill(&mut base);
        (base.werror, base.rerror)
    }

    #[test]
    fn what_is_said_counts() {
        let (stop, report) = (Some(OnError::Stop), Some(OnError::Report));
        let ours = ErrorDefaults::default();
        assert_eq!(filled(&ours, ""), (None, None));
        assert_eq!(filled(&ours, ",werror=stop"), (stop, None));
        let theirs = ErrorDefaults::default();
        theirs.report();
        assert_eq!(filled(&theirs, ""), (report, report));
        assert_eq!(filled(&theirs, ",rerror=stop"), (report, stop));
        assert_eq!(
            filled(&theirs, ",werror=auto"),
            (Some(OnError::Auto), report)
        );
    }
}
