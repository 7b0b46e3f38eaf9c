use std::io::ErrorKind;
use std::os::unix::net::UnixListener;

use super::*;
use crate::connect_unix;

#[tokio::test]
async fn a_listener_that_accepts_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let limit = Duration::from_millis(50);
    let absent = connect_unix(&path, limit).await.unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound);

    let listener = UnixListener::bind(&path).unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        match connect_unix(&path, limit).await {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    // A place is free again.
    let (connected, accepted) = tokio::join!(connect_unix(&path, LONG), async {
        tokio::task::spawn_blocking(move || listener.accept().map(|_| listener)).await
    });
    connected.unwrap();
    accepted.unwrap().unwrap();
    drop(waiting);
}

/// The daemon listens on such a path, and the tool could not connect to it.
#[tokio::test]
async fn a_path_as_long_as_the_system_takes_it() {
    const PATH_BYTES_MAX: usize = 108;
    let dir = tempfile::tempdir().unwrap();
    let room = PATH_BYTES_MAX - dir.path().as_os_str().len() - 1;
    let address = |length| dir.path().join("q".repeat(length));
    let longest = rustix::net::SocketAddrUnix::new(address(room)).unwrap();
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    );
    let socket = socket.unwrap();
    rustix::net::bind(&socket, &longest).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    connect_unix(&address(room), LONG).await.unwrap();
    let longer = connect_unix(&address(room + 1), LONG).await.unwrap_err();
    assert_eq!(longer.raw_os_error(), Some(36), "ENAMETOOLONG: {longer}");
}
