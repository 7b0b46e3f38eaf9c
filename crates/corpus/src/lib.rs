//! The differential corpus: command lines and conversations, each a file, played to `standfastd` and to
//! `qemu-storage-daemon`, whose answers are compared.
//!
//! No expectation is written down. What a case expects is what the peer answers in the same run; a
//! difference is either a mistake or stands in the [`ledger`] with its reason, from which
//! `docs/compatibility.md` takes its table. Where the peer's versions differ from each other, whatever
//! equals one of them is the same.
//!
//! * [`case`]: what is played, from its file.
//! * [`play`]: plays it to one program, in a directory of its own, and gives a [`transcript`].
//! * [`compare`]: what differs between two transcripts, each part by its name.
//! * [`ledger`]: which differences are known, and why.
//! * [`runner`]: all of it, several cases at a time.

pub mod case;
pub mod compare;
pub mod document;
pub mod ledger;
mod normal;
mod place;
pub mod play;
mod process;
pub mod program;
pub mod runner;
pub mod schema;
mod talk;
pub mod transcript;
mod words;
