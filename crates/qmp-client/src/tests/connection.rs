use super::*;
use crate::{COMMANDS_MAX, ClientError};
use qapi::Object;

async fn refused(first: &str) -> String {
    let (wire, mut server) = pair(1 << 10);
    server.say(first).await;
    Connection::greet(wire).await.unwrap_err().to_string()
}

#[tokio::test]
async fn whoever_does_not_greet_is_told_apart() {
    for (first, why) in [
        ("SSH-2.0-x\r\n", "JSON parse error, stray 'S'"),
        ("[]", "a message is no JSON object"),
        ("{\"return\": {}}", "it begins with no greeting"),
        ("{\"event\": \"STOP\"}", "it begins with no greeting"),
        ("{\"QMP\": 5}", "a greeting cannot be read: "),
        (
            "{\"x\": 5}",
            "a message is neither an answer nor an event: ",
        ),
    ] {
        let said = refused(first).await;
        let expected = format!("it does not speak QMP: {why}");
        assert!(said.starts_with(&expected), "{first}: {said}");
    }
    let (wire, server) = pair(64);
    drop(server);
    assert!(matches!(
        Connection::greet(wire).await,
        Err(ClientError::Closed)
    ));
}

/// A server with one client at a time accepts the next one, and says nothing to it.
#[tokio::test]
async fn a_busy_server_is_not_waited_for() {
    let limit = Duration::from_millis(20);
    let (wire, server) = pair(64);
    let error = Connection::open(wire, limit).await.unwrap_err();
    assert!(matches!(error, ClientError::NoGreeting { after } if after == limit));
    drop(server);

    let (wire, mut server) = pair(1 << 10);
    server.say(GREETING).await;
    let error = Connection::open(wire, limit).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::NoAnswer { command, .. } if command == "qmp_capabilities"),
        "{error}"
    );
}

#[tokio::test]
async fn events_and_answers_keep_their_order() {
    let (mut connection, mut server) = opened(1 << 12).await;
    assert_eq!(connection.greeting().qmp.capabilities, ["oob"]);
    assert_eq!(connection.greeting().qmp.version.qemu.major, 7);
    assert_eq!(connection.send("stop", &Object::new()).unwrap(), 2);
    let arguments = json!({"a": [1]}).as_object().unwrap().clone();
    assert_eq!(connection.send("nosuch", &arguments).unwrap(), 3);
    let says = async {
        assert_eq!(server.hear().await, json!({"execute": "stop", "id": 2}));
        let expected = json!({"execute": "nosuch", "arguments": {"a": [1]}, "id": 3});
        assert_eq!(server.hear().await, expected);
        server
            .say(
                "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n\
                 {\"return\": {\"x\": 1}, \"id\": 2, \"unknown\": 1}{\"event\": \"UNKNOWN\", \"data\": {\"n\": 1}}\r\n\
                 {\"id\": 3, \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\", \"z\": 0}}",
            )
            .await;
    };
    let hears = async {
        let Incoming::Event(event) = connection.next().await.unwrap() else {
            panic!("an event comes first");
        };
        assert_eq!((event.name(), event.data()), ("STOP", None));
        assert_eq!(event.timestamp().map(|at| at.microseconds), Some(2));
        for expected in ["stop 2: {\"x\":1}", "UNKNOWN", "nosuch 3! no"] {
            assert_eq!(short(connection.next().await.unwrap()), expected);
        }
    };
    tokio::join!(says, hears);
    assert_eq!(connection.under_way(), 0);
    // Nothing is asked, and the end is seen all the same.
    drop(server);
    assert!(matches!(connection.next().await, Err(ClientError::Closed)));
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let (mut connection, mut server) = opened(1 << 12).await;
    for command in ["a", "b", "c"] {
        connection.send(command, &Object::new()).unwrap();
    }
    server
        .say("{\"return\": 1, \"id\": 4}{\"return\": 2, \"id\": 2}")
        .await;
    // What the server could not read is the oldest that it has not answered.
    server
        .say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}")
        .await;
    for expected in ["c 4: 1", "a 2: 2", "b 3! JSON parse error"] {
        assert_eq!(short(connection.next().await.unwrap()), expected);
    }
}

#[tokio::test]
async fn nonsense_ends_the_connection() {
    for (asked, said, why) in [
        (
            true,
            "{\"return\": {}, \"id\": 77}",
            "the answer to 'x' has another id",
        ),
        (
            true,
            "{\"return\": {}, \"id\": \"2\"}",
            "the answer to 'x' has another id",
        ),
        (
            true,
            "{\"return\": {}, \"id\": null}",
            "the answer to 'x' has another id",
        ),
        (true, "{\"return\": {}}", "the answer to 'x' has another id"),
        (false, "{\"return\": {}, \"id\": 1}", "an answer to nothing"),
        (
            false,
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"\"}}",
            "an answer to nothing",
        ),
        (true, "{\"event\": 5}", "an event has no name"),
        (
            true,
            "{\"id\": 2}",
            "a message is neither an answer nor an event: ",
        ),
        (true, GREETING, "a second greeting"),
        (true, "5 ", "a message is no JSON object"),
        (
            true,
            "{\"a\": 1, \"a\": 2}",
            "JSON parse error, duplicate key",
        ),
    ] {
        let (mut connection, mut server) = opened(1 << 12).await;
        if asked {
            connection.send("x", &Object::new()).unwrap();
        }
        server.say(said).await;
        // Whatever it says afterwards.
        server.say("{\"event\": \"STOP\"}").await;
        for _ in 0..2 {
            let error = connection.next().await.unwrap_err().to_string();
            let expected = format!("it does not speak QMP: {why}");
            assert!(error.starts_with(&expected), "{said}: {error}");
        }
    }
}

#[tokio::test]
async fn events_of_the_negotiation_are_kept() {
    let (wire, mut server) = pair(1 << 12);
    server.say(GREETING).await;
    server
        .say("{\"event\": \"A\"}{\"return\": {}, \"id\": 1}{\"event\": \"B\"}")
        .await;
    let mut connection = Connection::open(wire, LONG).await.unwrap();
    for expected in ["A", "B"] {
        assert_eq!(short(connection.next().await.unwrap()), expected);
    }
}

#[tokio::test]
async fn a_refused_negotiation() {
    let (wire, mut server) = pair(1 << 12);
    server.say(GREETING).await;
    server
        .say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 1}")
        .await;
    let error = Connection::open(wire, LONG).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(error) if error.desc == "no"));
}

#[tokio::test]
async fn commands_under_way_are_bounded() {
    let (mut connection, mut server) = opened(1 << 16).await;
    for _ in 0..COMMANDS_MAX {
        connection.send("x", &Object::new()).unwrap();
    }
    assert!(matches!(
        connection.send("x", &Object::new()),
        Err(ClientError::TooManyCommands)
    ));
    server.say("{\"return\": {}, \"id\": 5}").await;
    connection.next().await.unwrap();
    connection.send("x", &Object::new()).unwrap();
}

/// `next` is dropped whenever something else comes first: byte by byte here.
#[tokio::test]
async fn waiting_can_be_given_up_at_any_time() {
    let (mut connection, mut server) = opened(1 << 12).await;
    connection.send("x", &Object::new()).unwrap();
    let said = "{\"event\": \"A\"}{\"return\": {}, \"id\": 2}{\"event\": \"B\"}";
    let mut seen = Vec::new();
    for byte in said.chars() {
        server.say(&byte.to_string()).await;
        tokio::select! {
            biased;
            next = connection.next() => seen.push(short(next.unwrap())),
            () = std::future::ready(()) => {}
        }
    }
    assert_eq!(seen, ["A", "x 2: {}", "B"]);
}
