//! Unix sockets that we listen on. They are ours alone as long as they exist, and for those they are
//! meant for from the first moment; or somebody else has made them, and keeps them.

mod access;
mod accounts;
mod error;
mod inherited;
mod socket;

pub use access::Access;
pub use accounts::{group_id, user_id};
pub use error::{InheritedError, SocketError};
pub use inherited::{inherited_socket, take_over};
pub use socket::{Socket, bind_socket};
