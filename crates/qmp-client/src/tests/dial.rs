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
