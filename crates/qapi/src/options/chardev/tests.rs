use std::time::Duration;

use super::*;
use crate::de::{self, Mode};
use crate::options::UnixAddress;
use crate::{QmpError, json};

fn parse(text: &str) -> Result<ChardevBackend, String> {
    ChardevOptions::parse(text)
        .map(|(options, _)| options.backend)
        .map_err(|e: QmpError| e.desc)
}

fn socket(text: &str) -> ChardevSocket {
    match parse(text).unwrap().variant {
        ChardevVariant::Socket(Data { data }) => data,
        other => panic!("{text}: {other:?}"),
    }
}

fn unix(text: &str) -> UnixAddress {
    match socket(text).addr.variant {
        ChardevAddressVariant::Unix(Data { data }) => data,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn mistakes() {
    let identifier = "Parameter 'id' expects an identifier";
    let made =
        "'mode', 'owner' and 'group' are for a socket that is made: use 'path' and 'server=on'";
    let one_of = "None or one of 'path', 'fd' or 'host' option required.";
    for (text, desc) in [
        ("foo", "chardev: no id specified"),
        ("", "chardev: no id specified"),
        (",", "chardev: no id specified"),
        ("{\"id\":\"a\"}", "chardev: no id specified"),
        ("foo,id=a", "'foo' is not a valid char driver name"),
        (
            "mux,id=a,chardev=b",
            "'mux' is not a valid char driver name",
        ),
        ("=", "Invalid parameter ''"),
        ("id=a", "chardev: \"a\" missing backend"),
        (
            "socket,id=a,path=,server=on",
            "Parameter 'path' is empty: a socket needs a path",
        ),
        ("null,id=9", identifier),
        // The first id counts, and before all else.
        ("foo,x=y,id=a,,b,id=c", identifier),
        ("socket,id=a", "Unable to parse FD number "),
        ("socket,id=a,fd=x", "Unable to parse FD number x"),
        (
            "socket,id=a,path=p,foo=1,server=maybe",
            "Invalid parameter 'foo'",
        ),
        (
            "socket,id=a,path=p,server=maybe,foo=1",
            "Parameter 'server' expects 'on' or 'off'",
        ),
        ("socket,id=a,path=p,serverx", "Invalid parameter 'serverx'"),
        ("socket,id=a,path=p,fd=3", one_of),
        ("socket,id=a,path=p,host=h", one_of),
        ("socket,id=a,host=h", "chardev: socket: no port given"),
        (
            "socket,id=a,host=h,port=1,to=65536",
            "Parameter 'to' is no port: 65536",
        ),
        (
            "socket,id=a,path=p,reconnect=x",
            "Parameter 'reconnect' expects a number",
        ),
        (
            "socket,id=a,path=p,reconnect=-1",
            "Parameter 'reconnect' expects a number",
        ),
        (
            "socket,id=a,path=p,reconnect=1,reconnect-ms=1",
            "'reconnect' and 'reconnect-ms' are mutually exclusive",
        ),
        (
            "socket,id=a,path=p,server=on,reconnect=1",
            "'reconnect' option is incompatible with socket in server listen mode",
        ),
        (
            "socket,id=a,path=p,wait=off,noserver",
            "'wait' option is incompatible with socket in client connect mode",
        ),
        (
            "socket,id=a,path=p,websocket=on",
            "Websocket client is not implemented",
        ),
        (
            "socket,id=a,path=p,tls-creds=t",
            "No TLS credentials with id 't'",
        ),
        (
            "socket,id=a,path=p,telnet=on,server=on",
            "Parameter 'telnet' is not supported: what comes through the socket is QMP alone",
        ),
        (
            "socket,id=a,path=p,server=on,mode=rw",
            "Parameter 'mode' expects octal permissions up to 0777, such as 0660, not 'rw'",
        ),
        ("socket,id=a,path=p,mode=0660", made),
        ("socket,id=a,path=p,abstract=on,server=on,mode=0660", made),
        ("socket,id=a,fd=3,server=on,group=kvm", made),
        (
            "stdio,id=a,signal=x",
            "Parameter 'signal' expects 'on' or 'off'",
        ),
        ("file,id=a", "chardev: file: no filename given"),
        (
            "ringbuf,id=a,size=100",
            "size of ringbuf chardev must be power of two",
        ),
        // QEMU takes that one, and dies by the first byte.
        (
            "ringbuf,id=a,size=0",
            "size of ringbuf chardev must be power of two",
        ),
        (
            "ringbuf,id=a,size=1T",
            "size of ringbuf chardev must be at most 67108864",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), desc, "{text}");
    }
    let size = parse("ringbuf,id=a,size=1x").unwrap_err();
    assert_eq!(
        size,
        "Parameter 'size' expects a non-negative number below 2^64"
    );
}

#[test]
fn sockets() {
    let made = socket("socket,id=a,path=p,,q,server=on,wait=off");
    assert!(made.is_server() && made.wait == Some(false));
    assert_eq!(unix("socket,id=a,path=p,,q").path, "p,q");
    let made = socket("socket,path=x,id=a,server=on,path=p,");
    assert_eq!(made.wait, Some(true));
    assert_eq!(unix("socket,path=x,id=a,path=p,").path, "p");
    let made = socket("socket,id=a,path=p");
    assert!(!made.is_server() && made.wait.is_none() && made.reconnects_after().is_none());
    for (text, delay) in [
        ("reconnect=2", 2000),
        ("reconnect-ms=5", 5),
        ("reconnect=0x1", 1000),
    ] {
        let made = socket(&format!("socket,id=a,path=p,{text}"));
        assert_eq!(made.reconnects_after(), Some(Duration::from_millis(delay)));
    }
    assert_eq!(
        socket("socket,id=a,path=p,reconnect=0").reconnects_after(),
        None
    );
    let name = unix("socket,id=a,path=p,abstract=on,tight=off");
    assert_eq!((name.r#abstract, name.tight), (Some(true), Some(false)));
    let access = unix("socket,id=a,path=p,server=on,mode=0660,owner=qemu,group=36").access();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        (access.mode, access.owner, access.group),
        (some("0660"), some("qemu"), some("36"))
    );
    let made = socket("socket,id=a,host=h,port=1,to=3,ipv6=off");
    let ChardevAddressVariant::Inet(Data { data }) = made.addr.variant else {
        panic!("TCP");
    };
    assert_eq!((&*data.host, &*data.port, data.to), ("h", "1", Some(3)));
    assert_eq!((data.ipv4, data.ipv6), (None, Some(false)));
}

#[test]
fn short_forms_are_told() {
    let (options, warnings) = ChardevOptions::parse("socket,id=a,path=p,server,nowait").unwrap();
    let ChardevVariant::Socket(Data { data }) = options.backend.variant else {
        panic!("socket");
    };
    assert!(data.is_server() && data.wait == Some(false));
    assert_eq!(
        warnings,
        [
            "short-form boolean option 'server' deprecated\nPlease use server=on instead",
            "short-form boolean option 'nowait' deprecated\nPlease use wait=off instead"
        ]
    );
}

#[test]
fn other_kinds() {
    let common = |text: &str| parse(text).unwrap().common();
    assert_eq!(common("null,id=a,path=x"), ChardevCommon::default());
    for kind in [
        "null",
        "stdio",
        "file,path=p",
        "ringbuf",
        "memory",
        "pty",
        "socket,path=p",
    ] {
        let log = common(&format!("{kind},id=a,logfile=l,logappend=on"));
        assert_eq!(
            (log.logfile.as_deref(), log.logappend),
            (Some("l"), Some(true))
        );
    }
    let ChardevVariant::File(Data { data }) = parse("file,id=a,path=o,input-path=i,append=on")
        .unwrap()
        .variant
    else {
        panic!("file");
    };
    assert_eq!(
        (&*data.out, data.r#in.as_deref(), data.append),
        ("o", Some("i"), Some(true))
    );
    let ChardevVariant::Ringbuf(Data { data }) = parse("ringbuf,id=a,size=4K").unwrap().variant
    else {
        panic!("ringbuf");
    };
    assert_eq!(data.bytes().unwrap(), 4096);
    assert_eq!(ChardevRingbuf::default().bytes().unwrap(), 65536);
}

/// As QEMU's chardev-add answers.
#[test]
fn over_qmp() {
    let parse = |text: &str| {
        let value = json::parse(text).unwrap();
        let options: Result<ChardevOptions, _> = de::from_value(&value, Mode::Json);
        options.map_err(|error| error.desc)
    };
    for (text, desc) in [
        ("{}", "Parameter 'id' is missing"),
        (r#"{"id":"c"}"#, "Parameter 'backend' is missing"),
        (
            r#"{"id":"c","backend":{}}"#,
            "Parameter 'backend.type' is missing",
        ),
        (
            r#"{"id":"c","backend":{"type":"nosuch"}}"#,
            "Parameter 'type' does not accept value 'nosuch'",
        ),
        (
            r#"{"id":"c","backend":{"type":"null"}}"#,
            "Parameter 'backend.data' is missing",
        ),
        (
            r#"{"id":"c","backend":{"type":"null","data":{"foo":1}}}"#,
            "Parameter 'backend.data.foo' is unexpected",
        ),
        (
            r#"{"id":"c","backend":{"type":"null","data":{}},"x":1}"#,
            "Parameter 'x' is unexpected",
        ),
        (
            r#"{"id":"c","backend":{"type":"socket","data":{}}}"#,
            "Parameter 'backend.data.addr' is missing",
        ),
        (
            r#"{"id":"c","backend":{"type":"socket","data":{"addr":{"type":"unix","path":"x"}}}}"#,
            "Parameter 'backend.data.addr.data' is missing",
        ),
        (
            r#"{"id":"c","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{}}}}}"#,
            "Parameter 'backend.data.addr.data.path' is missing",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), desc, "{text}");
    }
    let text = r#"{"id":"c","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"p"}}}}}"#;
    let ChardevVariant::Socket(Data { data }) = parse(text).unwrap().backend.variant else {
        panic!("socket");
    };
    assert!(data.is_server() && data.wait.is_none());
}
