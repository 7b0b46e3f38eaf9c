//! A vhost-user-blk front end: what a VMM does, as a library.
