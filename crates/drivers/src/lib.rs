//! Block drivers: file, host_device, null-co, quota, blkdebug.
