//! The vhost-user-blk export.
