use super::*;
use crate::{Client, ClientError, EVENTS_BYTES_MAX, Events, start};
use qapi::Object;
use tokio::task::JoinHandle;

async fn started() -> (Client, Events, JoinHandle<()>, Server) {
    let (connection, server) = opened(1 << 16).await;
    let (client, events, driver) = start(connection);
    (client, events, tokio::spawn(driver), server)
}

fn ask(client: &Client, command: &'static str) -> JoinHandle<Result<Value, ClientError>> {
    let client = client.clone();
    tokio::spawn(async move { client.execute(command, Object::new()).await })
}

#[tokio::test]
async fn several_commands_at_once() {
    let (client, _events, _driver, mut server) = started().await;
    let first = ask(&client, "first");
    assert_eq!(server.hear().await["id"], 2);
    let second = ask(&client, "second");
    assert_eq!(server.hear().await["id"], 3);
    server.say("{\"return\": \"b\", \"id\": 3}").await;
    assert_eq!(second.await.unwrap().unwrap(), "b");
    server
        .say("{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"a\"}, \"id\": 2}")
        .await;
    let error = first.await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Refused(error) if error.desc == "a"));
}

/// Whoever sees an answer finds what was told before it.
#[tokio::test]
async fn events_come_before_the_answer_behind_them() {
    let (client, mut events, _driver, mut server) = started().await;
    for _ in 0..100 {
        let answer = ask(&client, "stop");
        let id = server.hear().await["id"].clone();
        server
            .say(&format!(
                "{{\"event\": \"STOP\"}}{{\"return\": {{}}, \"id\": {id}}}"
            ))
            .await;
        answer.await.unwrap().unwrap();
        assert_eq!(events.try_next().unwrap().unwrap().name(), "STOP");
        assert!(events.try_next().unwrap().is_none());
    }
}

#[tokio::test]
async fn no_answer_in_time() {
    let (client, _events, _driver, _server) = started().await;
    let limit = Duration::from_millis(20);
    let error = client.execute_within(limit, "slow", Object::new()).await;
    assert!(
        matches!(&error, Err(ClientError::NoAnswer { command, after }) if command == "slow" && *after == limit),
        "{error:?}"
    );
}

/// It is not taken for that of the next command.
#[tokio::test]
async fn the_answer_to_a_command_that_was_given_up() {
    let (client, _events, _driver, mut server) = started().await;
    let given_up = ask(&client, "slow");
    server.hear().await;
    given_up.abort();
    assert!(given_up.await.is_err());
    let next = ask(&client, "next");
    server.hear().await;
    server
        .say("{\"return\": \"late\", \"id\": 2}{\"return\": \"right\", \"id\": 3}")
        .await;
    assert_eq!(next.await.unwrap().unwrap(), "right");
}

#[tokio::test]
async fn everybody_learns_of_the_end() {
    let (client, mut events, driver, mut server) = started().await;
    let asked = ask(&client, "x");
    server.hear().await;
    server.say("{\"event\": \"SHUTDOWN\"}").await;
    drop(server);
    assert!(matches!(asked.await.unwrap(), Err(ClientError::Closed)));
    assert_eq!(events.next().await.unwrap().name(), "SHUTDOWN");
    assert!(matches!(events.next().await, Err(ClientError::Closed)));
    assert!(matches!(events.try_next(), Err(ClientError::Closed)));
    let late = client.execute("x", Object::new()).await;
    assert!(matches!(late, Err(ClientError::Closed)));
    driver.await.unwrap();
}

#[tokio::test]
async fn garbage_is_told_to_all() {
    let (client, mut events, _driver, mut server) = started().await;
    server.say("{\"return\": {}, \"id\": 9}").await;
    let error = events.next().await.unwrap_err().to_string();
    assert_eq!(error, "it does not speak QMP: an answer to nothing");
    let late = client.execute("x", Object::new()).await;
    assert_eq!(late.unwrap_err().to_string(), error);
}

/// An event with that number that takes a bit more than 1 MiB: short text, much memory.
fn large_event(number: usize) -> String {
    let items = "0,".repeat((1 << 20) / size_of::<Value>());
    format!("{{\"event\": \"E\", \"data\": {{\"n\": {number}, \"x\": [{items}0]}}}}")
}

/// How many of them have room.
const LARGE_EVENTS: usize = (EVENTS_BYTES_MAX >> 20) - 1;

/// All that had room is there; then it is said that there was more.
#[tokio::test]
async fn events_that_nobody_takes_do_not_grow_for_ever() {
    let (client, mut events, driver, mut server) = started().await;
    for number in 0..=LARGE_EVENTS {
        server.say(&large_event(number)).await;
    }
    driver.await.unwrap();
    for number in 0..LARGE_EVENTS {
        let event = events.next().await.unwrap();
        assert_eq!(event.data().unwrap()["n"], number);
    }
    let end = events.next().await.unwrap_err();
    assert!(matches!(end, ClientError::EventsNotTaken), "{end}");
    let late = client.execute("x", Object::new()).await;
    assert!(matches!(late, Err(ClientError::EventsNotTaken)));
}

#[tokio::test]
async fn what_is_taken_makes_room() {
    let (_client, mut events, _driver, mut server) = started().await;
    for number in 0..3 * LARGE_EVENTS {
        server.say(&large_event(number)).await;
        let event = events.next().await.unwrap();
        assert_eq!(event.data().unwrap()["n"], number);
    }
}

#[tokio::test]
async fn events_that_nobody_wants_do_not_wait() {
    let (client, events, _driver, mut server) = started().await;
    drop(events);
    for number in 0..3 * LARGE_EVENTS {
        server.say(&large_event(number)).await;
    }
    let asked = ask(&client, "x");
    server.hear().await;
    server.say("{\"return\": {}, \"id\": 2}").await;
    asked.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_connection_ends_with_its_last_handle() {
    let (client, mut events, driver, mut server) = started().await;
    drop(client);
    server.say("{\"event\": \"A\"}").await;
    assert_eq!(events.next().await.unwrap().name(), "A");
    drop(events);
    driver.await.unwrap();
    assert_eq!(server.0.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_driver_that_was_dropped() {
    let (connection, _server) = opened(1 << 12).await;
    let (client, mut events, driver) = start(connection);
    drop(driver);
    assert!(matches!(events.next().await, Err(ClientError::Closed)));
    let late = client.execute("x", Object::new()).await;
    assert!(matches!(late, Err(ClientError::Closed)));
}
