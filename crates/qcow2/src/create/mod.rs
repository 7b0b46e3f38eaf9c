//! New images: what they are to be like ([`options`](CreateOptions)), where everything is in them ([`Layout`], pure), and how they
//! come onto nodes so that there is never half of one ([`create`]).

mod error;
mod layout;
mod make;
mod options;

pub use drivers::file::Preallocation;
pub use error::CreateError;
pub use layout::Layout;
pub use make::{Target, create, create_alone, make_alone};
pub use options::{CLUSTER_BYTES, CreateOptions, SECTOR, Version};

#[cfg(test)]
mod tests;
