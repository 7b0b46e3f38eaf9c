//! A panic on an iothread aborts the process.
#![cfg(not(loom))]

mod common;

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::process::ExitStatusExt, process::Command};

    use standfast_iothread::{Engine, ops, set_last_words};

    use crate::common::*;

    const CHILD: &str = "STANDFAST_IOTHREAD_PANIC_CHILD";

    /// The child is this very test, told by the environment to be it.
    #[test]
    fn aborts_the_process_loudly() {
        if let Ok(child_is) = std::env::var(CHILD) {
            let (engine, kind) = child_is.split_once('/').unwrap();
            let engine = [Engine::IoUring, Engine::Threads]
                .into_iter()
                .find(|e| e.as_str() == engine);
            child(engine.unwrap(), kind);
        }
        for (engine, kind) in [Engine::IoUring, Engine::Threads]
            .into_iter()
            .flat_map(|engine| ["plain", "in-flight", "spawn", "told"].map(|kind| (engine, kind)))
        {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["tests::aborts_the_process_loudly", "--exact", "--nocapture"])
                .env(CHILD, format!("{engine}/{kind}"))
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.signal(),
                Some(libc::SIGABRT),
                "{kind}: {stderr}"
            );
            assert!(stderr.contains("half of it"), "{kind}: {stderr}");
            let said = match kind {
                "told" => "said by the log: iothread test: panicked; aborting\n",
                _ => "panicked; aborting",
            };
            assert!(stderr.contains(said), "{kind}: {stderr}");
        }
    }

    fn child(engine: Engine, kind: &str) {
        // A core file of every run would be a nuisance.
        let no_core = rustix::process::Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        rustix::process::setrlimit(rustix::process::Resource::Core, no_core).unwrap();
        if kind == "told" {
            // A daemon's log writes it: stderr may be a pipe that is full, and must not keep a broken
            // process alive.
            set_last_words(|text| {
                let text = format!("said by the log: {text}");
                std::io::stderr().write_all(text.as_bytes()).unwrap();
            });
        }
        let iothread = default_iothread(engine);
        let kind = kind.to_owned();
        let result = iothread.handle().run_blocking(move || {
            assert_ne!(kind, "spawn", "half of it");
            async move {
                let mut kick = ops::EventFd::new(eventfd(true));
                if kind == "in-flight" {
                    assert!(poll_once(std::pin::pin!(kick.wait())).await.is_none());
                }
                panic!("half of it");
            }
        });
        unreachable!("the process should be gone: {result:?}");
    }
}
