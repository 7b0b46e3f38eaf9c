use super::*;
use crate::options::MonitorOptions;

#[test]
fn object_and_monitor() {
    let object = |text: &str| ObjectOptions::parse(text).map_err(|e| e.desc);
    assert_eq!(object("iothread").unwrap_err(), "Parameter 'id' is missing");
    assert_eq!(
        object("id=a").unwrap_err(),
        "Parameter 'qom-type' is missing"
    );
    assert_eq!(
        object("nosuch,id=a").unwrap_err(),
        "Parameter 'qom-type' does not accept value 'nosuch'"
    );
    assert_eq!(
        object("iothread,id=a,foo=1").unwrap_err(),
        "Parameter 'foo' is unexpected"
    );
    assert_eq!(
        object("iothread,id=a,poll-max-ns=x").unwrap_err(),
        "Parameter 'poll-max-ns' expects integer"
    );
    assert_eq!(
        object("iothread,id=a,poll-max-ns=-1").unwrap_err(),
        "poll-max-ns value must be in range [0, 9223372036854775807]"
    );
    assert!(
        object("iothread,id=9")
            .unwrap_err()
            .starts_with("Parameter 'id' expects an ident")
    );
    let io = IothreadOptions {
        poll_grow: Some(2),
        ..IothreadOptions::default()
    };
    assert_eq!(
        object("iothread,id=a,poll-grow=2").unwrap().variant,
        ObjectVariant::Iothread(io)
    );

    for pool in ["min=65", "max=0", "min=3,thread-pool-max=2"] {
        assert_eq!(
            object(&format!("iothread,id=a,thread-pool-{pool}")).unwrap_err(),
            "bad thread-pool-min/thread-pool-max values"
        );
    }
    assert_eq!(
        object("iothread,id=a,thread-pool-max=-1").unwrap_err(),
        "thread-pool-max value must be in range [0, 9223372036854775807]"
    );
    let io = IothreadOptions {
        thread_pool_min: Some(2),
        thread_pool_max: Some(2),
        ..IothreadOptions::default()
    };
    assert_eq!(
        object("iothread,id=a,thread-pool-min=2,thread-pool-max=2")
            .unwrap()
            .variant,
        ObjectVariant::Iothread(io)
    );

    let monitor = |text: &str| MonitorOptions::parse(text).map_err(|e| e.desc);
    assert_eq!(
        monitor("mode=control").unwrap_err(),
        "Parameter 'chardev' is missing"
    );
    assert_eq!(
        monitor("c,mode=bar").unwrap_err(),
        "Parameter 'mode' does not accept value 'bar'"
    );
    assert_eq!(
        monitor("c,pretty=1").unwrap_err(),
        "Parameter 'pretty' expects 'on' or 'off'"
    );
    let parsed = monitor("c,pretty=on,id=m").unwrap();
    assert_eq!((parsed.chardev.as_str(), parsed.pretty), ("c", Some(true)));
}

#[test]
fn secrets() {
    let object = |text: &str| ObjectOptions::parse(text).map_err(|e| e.desc);
    for (text, desc) in [
        ("secret,id=s", "Either 'file' or 'data' must be provided"),
        (
            "secret,id=s,data=x,file=y",
            "'file' and 'data' are mutually exclusive",
        ),
        (
            "secret,id=s,data=!!,format=base64",
            "Base64 data contains invalid characters",
        ),
        (
            "secret,id=s,data=x,format=x",
            "Parameter 'format' does not accept value 'x'",
        ),
    ] {
        assert_eq!(object(text).unwrap_err(), desc);
    }
    for text in [
        "secret,id=s,data=!!",
        "secret,id=s,file=/nowhere",
        "secret,id=s,data=YWJj,format=base64,iv=x",
    ] {
        object(text).unwrap();
    }
}
