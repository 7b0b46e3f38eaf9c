//! An OS thread with one io_uring, a small executor, mailboxes and adaptive polling.
