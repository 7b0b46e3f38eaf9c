//! A fault sweep for image formats (for tests alone): proof that whatever fails, and wherever the power is cut, an image
//! is whole and has what the guest was promised.
//!
//! * [`mod@memory`]: storage whose operations all end at once, for tests and fuzz targets of their own;
//! * [`mod@storage`]: memory that is a driver; one of its operations fails, and all end in any order;
//! * [`player`]: a deterministic executor, which plays sequences of requests ([`mod@sequence`]) on two iothreads ([`hand`]);
//! * [`mod@event`]: the log of what has happened;
//! * [`disk`] and [`model`]: pure, from the log: what may be on the disk after a cut, and what the guest may find;
//! * [`mod@judge`]: cuts the log everywhere, opens what is left ([`look`]), compares, checks;
//! * [`mod@sweep`], [`mod@campaign`]: sequences, faults, seeds; what was found is made shorter and told;
//! * [`mod@stories`]: failures that were told in public, by name.
//!
//! There is no real I/O here: it is a proof beside those with real files, devices and guests, and not in their
//! place. It knows a storage that may lose and reorder whatever was not flushed, but writes sectors of 512 bytes whole.
//!
//! A format plugs in by [`Format`]:
//!
//! ```
//! # #[derive(Debug)]
//! # struct Nothing;
//! # impl standfast_sweep::Format for Nothing {
//! #     fn name(&self) -> String { "nothing".into() }
//! #     fn create(&self, sectors: u64) -> Vec<u8> { vec![0; sectors as usize * 512] }
//! #     fn open(&self, file: std::sync::Arc<block::Node>) -> Result<std::sync::Arc<block::Node>, String> { Ok(file) }
//! #     fn check(&self, _: &[u8]) -> Vec<standfast_sweep::Finding> { Vec::new() }
//! #     fn discards_are_private(&self) -> bool { false }
//! # }
//! # let format = Nothing;
//! let mut hands = standfast_sweep::Hands::here();
//! let totals = standfast_sweep::campaign(&format, &mut hands, 3, 5).unwrap_or_else(|found| panic!("{found}"));
//! assert!(totals.cuts > 0);
//! ```

pub mod campaign;
pub mod disk;
pub mod event;
pub mod format;
pub mod hand;
pub mod judge;
pub mod look;
pub mod memory;
pub mod model;
pub mod player;
pub mod sector;
pub mod sequence;
pub mod storage;
pub mod stories;
pub mod sweep;
pub mod window;

pub use campaign::{campaign, campaign_of};
pub use event::{Ask, Request};
pub use format::{Finding, Format};
pub use hand::Hands;
pub use memory::{Memory, allow_all};
pub use sector::{SECTOR, Value};
pub use sequence::Step;
pub use storage::{Fault, Storage};
pub use stories::Story;
pub use sweep::{Failure, Size, Totals, sweep_seed};
pub use window::Window;
