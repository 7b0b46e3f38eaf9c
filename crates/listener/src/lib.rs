//! Unix sockets that we listen on. They are ours alone as long as they exist, and for those they are
//! meant for from the first moment; or somebody else has made them, and keeps them.

mod access;
mod error;
mod socket;

pub use access::Access;
pub use error::SocketError;
pub use socket::{Socket, bind_socket};
