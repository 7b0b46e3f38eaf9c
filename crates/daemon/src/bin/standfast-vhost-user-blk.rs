//! A back-end program of vhost-user, of type "block".

use std::process::ExitCode;

fn main() -> ExitCode {
    standfast_daemon::vhost_user_blk_main(std::env::args_os())
}
