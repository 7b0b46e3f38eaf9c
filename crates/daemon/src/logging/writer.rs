//! Lines on their way to stderr.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

/// What may wait to be written, in bytes.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// What the last words of a process may need beyond that, in bytes.
const LAST_WORDS_BYTES_MAX: usize = 256 << 10;

/// The thread needs little: it writes.
const STACK_BYTES: usize = 256 << 10;

/// Lines of this target are about the log itself.
pub const ABOUT_THE_LOG: &str = "standfast::log";

/// What the log is told of what is left out of it.
#[derive(Clone, Copy, Debug)]
pub struct LeftOut {
    /// Whether there is something to report.
    pub is_any: fn() -> bool,
    /// Reports it.
    pub report: fn(),
    /// How long it is collected.
    pub every: Duration,
}

/// The log of the process.
pub static LOG: Log = Log::new();

#[derive(Debug)]
struct Waiting {
    text: Vec<u8>,
    /// Lines that found no room since this was last told.
    dropped: u64,
    /// The thread writes what it has taken out.
    writing: bool,
    /// There is a thread.
    started: bool,
}

/// See the [module](self). Its lock is never held while anything is waited for.
#[derive(Debug)]
pub struct Log {
    waiting: Mutex<Waiting>,
    /// Something was put in, or is to be reported.
    filled: Condvar,
    /// Everything is out.
    empty: Condvar,
}

impl Log {
    const fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                text: Vec::new(),
                dropped: 0,
                writing: false,
                started: false,
            }),
            filled: Condvar::new(),
            empty: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Starts the thread that writes, and reports what was `left_out`.
    pub fn start(&'static self, left_out: LeftOut) -> io::Result<()> {
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK_BYTES);
        thread.spawn(move || self.run(left_out, |text| write_all(&io::stderr(), text)))?;
        self.lock().started = true;
        Ok(())
    }

    fn put(&self, line: &[u8], bytes_max: usize) {
        if line.is_empty() {
            return;
        }
        let mut waiting = self.lock();
        if waiting.text.len() + line.len() <= bytes_max {
            waiting.text.extend_from_slice(line);
        } else {
            waiting.dropped += 1;
        }
        drop(waiting);
        self.filled.notify_one();
    }

    /// Puts a line in, or counts it if there is no room. Never waits.
    pub fn push(&self, line: &[u8]) {
        self.put(line, WAITING_BYTES_MAX);
    }

    /// As [`Self::push`], for what is more important than lines are.
    pub fn push_anyway(&self, text: &[u8]) {
        self.put(text, WAITING_BYTES_MAX + LAST_WORDS_BYTES_MAX);
    }

    /// Some lines of a kind were left out: the thread reports them by and by.
    pub fn wake(&self) {
        self.filled.notify_one();
    }

    /// Waits until all is out, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let full = |waiting: &mut Waiting| waiting.writing || !waiting.text.is_empty();
        let mut waiting = self.lock();
        if !waiting.started {
            drop(waiting);
            // Nobody else is there yet.
            self.step(&mut Vec::new(), |text| write_all(&io::stderr(), text));
            return;
        }
        self.empty.wait_while_for(&mut waiting, full, limit);
    }

    fn run(&self, left_out: LeftOut, mut write: impl FnMut(&[u8])) {
        let mut text = Vec::new();
        let mut report_at = None;
        loop {
            self.wait(left_out, &mut report_at);
            self.step(&mut text, &mut write);
        }
    }

    /// Waits for lines; reports meanwhile what was left out, when it is time.
    fn wait(&self, left_out: LeftOut, report_at: &mut Option<Instant>) {
        let mut waiting = self.lock();
        loop {
            if report_at.is_none() && (left_out.is_any)() {
                *report_at = Some(Instant::now() + left_out.every);
            }
            let timeout = report_at.map(|at| at.saturating_duration_since(Instant::now()));
            if timeout == Some(Duration::ZERO) {
                *report_at = None;
                drop(waiting);
                (left_out.report)();
                waiting = self.lock();
                continue;
            }
            if !waiting.text.is_empty() {
                return;
            }
            match timeout {
                None => self.filled.wait(&mut waiting),
                Some(timeout) => {
                    self.filled.wait_for(&mut waiting, timeout);
                }
            }
        }
    }

    /// Writes what is in, and says what was dropped.
    fn step(&self, text: &mut Vec<u8>, write: impl FnOnce(&[u8])) {
        text.clear();
        let mut waiting = self.lock();
        std::mem::swap(text, &mut waiting.text);
        let dropped = std::mem::take(&mut waiting.dropped);
        waiting.writing = true;
        drop(waiting);
        write(text);
        let mut waiting = self.lock();
        waiting.writing = false;
        if waiting.text.is_empty() {
            self.empty.notify_all();
        }
        drop(waiting);
        if dropped > 0 {
            tracing::warn!(
                target: ABOUT_THE_LOG,
                "{dropped} lines of the log were dropped: nobody has read stderr"
            );
        }
    }
}

/// Writes all of it, whatever the other end does to the descriptor; what cannot be written is lost.
fn write_all(file: &impl AsFd, mut text: &[u8]) {
    while !text.is_empty() {
        match rustix::io::write(file, text) {
            Ok(count) => text = text.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Somebody who shares it has made it non-blocking.
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(file, PollFlags::OUT)];
                if !matches!(
                    rustix::event::poll(&mut fds, None),
                    Ok(_) | Err(Errno::INTR)
                ) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// One line; it is written at once by whoever formats it.
#[derive(Clone, Copy, Debug)]
pub struct Line;

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LOG.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::PipeFlags;
    use std::sync::mpsc;

    /// A log whose writer is stuck until the test reads.
    fn stuck() -> (&'static Log, mpsc::Receiver<Vec<u8>>) {
        let log: &'static Log = Box::leak(Box::new(Log::new()));
        let (written, read) = mpsc::sync_channel(0);
        log.lock().started = true;
        std::thread::spawn(move || {
            let nothing = LeftOut {
                is_any: || false,
                report: || {},
                every: Duration::MAX,
            };
            log.run(nothing, |text| {
                // The test has ended.
                let _ = written.send(text.to_vec());
            });
        });
        (log, read)
    }

    /// The control thread, and then iothreads, waited for a place in a pipe that nobody read.
    #[test]
    fn whoever_logs_waits_for_nobody_and_what_is_lost_is_counted() {
        let (log, read) = stuck();
        let line = [b'x'; 1000];
        // The thread takes the count with the lines: it must be stuck before they are counted, or
        // it may take everything that was dropped, and the rest fits.
        log.push(&line);
        while !log.lock().writing {
            std::thread::yield_now();
        }
        for _ in 0..2 * WAITING_BYTES_MAX / line.len() {
            log.push(&line);
        }
        assert!(log.lock().dropped > 0);
        assert!(log.lock().text.len() <= WAITING_BYTES_MAX);
        log.push_anyway(b"last words\n");
        log.flush(Duration::from_millis(10));
        let mut all = Vec::new();
        while !all.ends_with(b"last words\n") {
            all.extend(read.recv_timeout(Duration::from_secs(20)).unwrap());
        }
        log.flush(Duration::from_secs(20));
        assert!(log.lock().text.is_empty());
    }

    #[test]
    fn a_descriptor_that_does_not_block_gets_all() {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (reader, writer) = rustix::pipe::pipe_with(flags).unwrap();
        let text = vec![b'x'; 1 << 20];
        let expected = text.len();
        let thread = std::thread::spawn(move || write_all(&writer, &text));
        let mut total = 0;
        let mut buffer = vec![0; 64 << 10];
        while total < expected {
            match rustix::io::read(&reader, &mut buffer) {
                Ok(count) => total += count,
                Err(Errno::AGAIN) => std::thread::yield_now(),
                Err(errno) => panic!("{errno}"),
            }
        }
        thread.join().unwrap();
    }
}
