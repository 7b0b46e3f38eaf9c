use super::*;
use crate::{ClientError, ProtocolError};
use qapi::json::Limits;

#[tokio::test]
async fn values_are_put_together_and_taken_apart() {
    // A byte at a time.
    let (mut wire, mut server) = pair(1);
    let says = async {
        server.say("{\"a\":\r\n [1,\r\n 2]}{\"b\": \"}\"} ").await;
        server.say("{}\r\n{\"cut off").await;
        drop(server);
    };
    let reads = async {
        for expected in [json!({"a": [1, 2]}), json!({"b": "}"}), json!({})] {
            assert_eq!(wire.read().await.unwrap(), expected);
        }
        for _ in 0..2 {
            assert!(matches!(wire.read().await, Err(ClientError::Closed)));
        }
    };
    tokio::join!(says, reads);
}

#[tokio::test]
async fn what_comes_before_garbage_counts() {
    let (mut wire, mut server) = pair(1 << 10);
    server.say("220 hello\r\n{}").await;
    assert_eq!(wire.read().await.unwrap(), 220);
    for _ in 0..2 {
        let error = wire.read().await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Protocol(ProtocolError::Json(_))),
            "{error}"
        );
    }
}

#[tokio::test]
async fn no_value_is_longer_than_the_limit() {
    let limits = Limits {
        text_bytes: 100,
        tokens: 10,
    };
    for (text, good) in [
        (format!("\"{}\"", "x".repeat(90)), true),
        (format!("\"{}", "x".repeat(110)), false),
        ("[1,2,3,4]".to_owned(), true),
        ("[1,2,3,4,5,6]".to_owned(), false),
    ] {
        let (ours, mut theirs) = duplex(1 << 10);
        let mut wire = Wire::with_limits(ours, limits);
        theirs.write_all(text.as_bytes()).await.unwrap();
        assert_eq!(wire.read().await.is_ok(), good, "{text}");
    }
}

/// An answer of several MiB; the answers of a server that takes nothing while it is not read.
#[tokio::test]
async fn large_values_in_both_directions_at_once() {
    let (mut wire, mut server) = pair(4 << 10);
    let text = "x".repeat(3 << 20);
    wire.push(text.as_bytes());
    let serves = async {
        server.say(&format!("\"{text}\"")).await;
        let mut heard = vec![0; text.len()];
        server.0.read_exact(&mut heard).await.unwrap();
        assert!(heard == text.as_bytes());
        server.say("{}").await;
    };
    let reads = async {
        assert_eq!(wire.read().await.unwrap(), text.as_str());
        assert_eq!(wire.read().await.unwrap(), json!({}));
    };
    tokio::join!(serves, reads);
}

#[tokio::test]
async fn a_flush_that_was_given_up_is_completed() {
    let (mut wire, mut server) = pair(4);
    wire.push(b"0123456789");
    tokio::select! {
        biased;
        done = wire.flush() => panic!("{done:?}"),
        () = std::future::ready(()) => {}
    }
    wire.push(b"ab");
    let mut heard = [0; 12];
    let (flushed, read) = tokio::join!(wire.flush(), server.0.read_exact(&mut heard));
    flushed.unwrap();
    read.unwrap();
    assert_eq!(&heard, b"0123456789ab");
}

/// The reason why a server went may be the last that it said.
#[tokio::test]
async fn what_was_said_is_read_though_nothing_can_be_written() {
    let (mut wire, mut server) = pair(64);
    server.say("{\"event\": \"SHUTDOWN\"}").await;
    drop(server);
    wire.push(b"{}");
    assert_eq!(wire.read().await.unwrap()["event"], "SHUTDOWN");
    assert!(matches!(wire.read().await, Err(ClientError::Io(_))));
    assert!(wire.flush().await.is_err());
}
