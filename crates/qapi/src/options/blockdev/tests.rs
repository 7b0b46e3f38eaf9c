use super::*;
use serde_json::json;

fn blockdev(text: &str) -> String {
    BlockdevOptions::parse(text).unwrap_err().desc
}

#[test]
fn blockdev_error_texts() {
    let debug = "blkdebug,node-name=a,image.driver=null-co";
    for (text, desc) in [
        (
            "nosuch",
            "Parameter 'driver' does not accept value 'nosuch'",
        ),
        ("", "Parameter 'driver' is missing"),
        ("[]", "Parameter 'driver' does not accept value '[]'"),
        (
            "driver=null-co",
            "'node-name' must be specified for the root node",
        ),
        ("null-co,node-name=9n", "Invalid node-name: '9n'"),
        ("null-co,node-name=", "Invalid node-name: ''"),
        (
            "null-co,node-name=a,size=1M",
            "Parameter 'size' expects integer",
        ),
        (
            "null-co,node-name=a,size=9223372036854775808",
            "Parameter 'size' expects integer",
        ),
        (
            "null-co,node-name=a,latency-ns=18446744073709551616",
            "Parameter 'latency-ns' expects integer",
        ),
        (
            "null-co,node-name=a,cache.direct=maybe",
            "Parameter 'cache.direct' expects 'on' or 'off'",
        ),
        (
            "null-co,node-name=a,cache=1",
            "Invalid parameter type for 'cache', expected: object",
        ),
        (
            "null-co,node-name=a,cache.0=on",
            "Invalid parameter type for 'cache', expected: object",
        ),
        (
            "null-co,node-name=a,cache.bad=1",
            "Parameter 'cache.bad' is unexpected",
        ),
        (
            "null-co,node-name=a,cache.direct.x=1",
            "Parameters 'cache.direct.*' are unexpected",
        ),
        (
            "null-co,node-name=a,bad.x.y=1",
            "Parameter 'bad' is unexpected",
        ),
        ("null-co,node-name=a,foo=1", "Parameter 'foo' is unexpected"),
        (
            "null-co,node-name=a,discard=foo",
            "Parameter 'discard' does not accept value 'foo'",
        ),
        (
            "null-co,node-name=a,detect-zeroes=x",
            "Parameter 'detect-zeroes' does not accept value 'x'",
        ),
        ("file,node-name=a", "Parameter 'filename' is missing"),
        // What is missing is reported before what is wrong later on, or unexpected.
        (
            "file,node-name=a,aio=foo,zzz=1",
            "Parameter 'filename' is missing",
        ),
        (
            "file,node-name=a,filename=f,aio=foo",
            "Parameter 'aio' does not accept value 'foo'",
        ),
        (
            "file,node-name=a,filename=f,locking=foo",
            "Parameter 'locking' does not accept value 'foo'",
        ),
        ("quota,node-name=a,file=b", "Parameter 'limit' is missing"),
        (
            "quota,node-name=a,file=b,limit=1x",
            "Parameter 'limit' expects size",
        ),
        ("blkdebug,node-name=a", "Parameter 'image' is missing"),
        (
            "blkdebug,node-name=a,image.0=x",
            "Invalid parameter type for 'image', expected: BlockdevRef",
        ),
        (
            "blkdebug,node-name=a,image.driver=nosuch",
            "Parameter 'driver' does not accept value 'nosuch'",
        ),
        (
            "blkdebug,node-name=a,image.driver=null-co,image.size=x",
            "Parameter 'image.size' expects integer",
        ),
        (
            "blkdebug,node-name=a,image.driver=null-co,image.node-name=1",
            "Invalid node-name: '1'",
        ),
        (
            "blkdebug,node-name=a,image.driver=null-co,image.x=1",
            "Parameter 'image.x' is unexpected",
        ),
    ] {
        assert_eq!(blockdev(text), desc, "{text}");
    }
    for (text, desc) in [
        (
            "inject-error=x",
            "Invalid parameter type for 'inject-error', expected: array",
        ),
        (
            "inject-error.0=x",
            "Invalid parameter type for 'inject-error.0', expected: object",
        ),
        (
            "inject-error.1.event=none",
            "Parameter 'inject-error.0' missing",
        ),
        (
            "inject-error.0.errno=5",
            "Parameter 'inject-error.0.event' is missing",
        ),
        (
            "inject-error.0.event=x",
            "Parameter 'event' does not accept value 'x'",
        ),
        (
            "inject-error.0.event=read_aio,inject-error.0.iotype=foo",
            "Parameter 'iotype' does not accept value 'foo'",
        ),
        (
            "inject-error.0.event=read_aio,inject-error.0.errno=foo",
            "Parameter 'inject-error.0.errno' expects integer",
        ),
        (
            "inject-error.0.event=read_aio,inject-error.x.errno=1",
            "Parameters 'inject-error.*' used inconsistently",
        ),
        (
            "set-state.0.event=none,set-state.0.state=1",
            "Parameter 'set-state.0.new_state' is missing",
        ),
    ] {
        assert_eq!(blockdev(&format!("{debug},{text}")), desc, "{text}");
    }
}

#[test]
fn blockdev_json_error_texts() {
    for (members, desc) in [
        (
            r#""read-only":"on""#,
            "Invalid parameter type for 'read-only', expected: boolean",
        ),
        (
            r#""size":"1""#,
            "Invalid parameter type for 'size', expected: integer",
        ),
        (
            r#""size":1.5"#,
            "Invalid parameter type for 'size', expected: integer",
        ),
        (
            r#""size":9223372036854775808"#,
            "Invalid parameter type for 'size', expected: integer",
        ),
        (
            r#""latency-ns":1e3"#,
            "Parameter 'latency-ns' expects uint64",
        ),
        (
            r#""latency-ns":"x""#,
            "Parameter 'latency-ns' expects uint64",
        ),
        (
            r#""cache":1"#,
            "Invalid parameter type for 'cache', expected: object",
        ),
        (
            r#""cache":{"direct":null}"#,
            "Invalid parameter type for 'cache.direct', expected: boolean",
        ),
        (r#""cache":{"x":{}}"#, "Parameter 'cache.x' is unexpected"),
        (
            r#""discard":1"#,
            "Invalid parameter type for 'discard', expected: string",
        ),
    ] {
        let text = format!(r#"{{"driver":"null-co","node-name":"a",{members}}}"#);
        assert_eq!(blockdev(&text), desc, "{text}");
    }
    for (members, desc) in [
        (
            r#""image":1"#,
            "Invalid parameter type for 'image', expected: BlockdevRef",
        ),
        (
            r#""image":null"#,
            "Invalid parameter type for 'image', expected: BlockdevRef",
        ),
        (
            r#""image":"x","inject-error":{}"#,
            "Invalid parameter type for 'inject-error', expected: array",
        ),
        (
            r#""image":"x","inject-error":[1]"#,
            "Invalid parameter type for 'inject-error[0]', expected: object",
        ),
        (
            r#""image":"x","inject-error":[{"event":"none","once":1}]"#,
            "Invalid parameter type for 'inject-error[0].once', expected: boolean",
        ),
    ] {
        let text = format!(r#"{{"driver":"blkdebug","node-name":"a",{members}}}"#);
        assert_eq!(blockdev(&text), desc, "{text}");
    }
    assert_eq!(
        blockdev(r#"{"driver":1}"#),
        "Invalid parameter type for 'driver', expected: string"
    );
    assert_eq!(blockdev("{"), "JSON parse error, premature EOI");
    assert_eq!(blockdev("{} {}"), "Expecting at most one JSON value");
}

#[test]
fn blockdev_values() {
    let node = BlockdevOptions::parse(
        "file,node-name=n,filename=/a,,b,cache.direct=yes,cache.no-flush=n,read-only=true,\
         aio=io_uring,locking=off,discard=unmap,",
    )
    .unwrap();
    assert_eq!(node.kind(), BlockdevDriver::File);
    assert!(node.base.cache_direct() && !node.base.cache_no_flush());
    assert_eq!(node.base.discard, Some(DiscardMode::Unmap));
    assert_eq!(node.base.auto_read_only, None);
    let BlockdevDriverOptions::File(file) = &node.variant else {
        panic!()
    };
    assert_eq!(file.filename, "/a,b");
    assert_eq!(file.aio, Some(AioMode::IoUring));

    for (size, bytes) in [("0x10", 16), (" 10", 10), ("010", 8), ("-1", -1), ("+5", 5)] {
        let node = BlockdevOptions::parse(&format!("null-co,node-name=n,size={size}")).unwrap();
        let BlockdevDriverOptions::NullCo(null) = node.variant else {
            panic!()
        };
        assert_eq!(null.size, Some(bytes), "{size}");
    }

    let node = BlockdevOptions::parse(
        "quota,node-name=q,limit=1.5M,file.driver=blkdebug,file.image=img,\
         file.inject-error.0.event=write_aio,file.inject-error.0.errno=28,\
         file.inject-error.0.once=on,file.set-state.0.event=pwritev_zero,\
         file.set-state.0.new_state=2",
    )
    .unwrap();
    let BlockdevDriverOptions::Quota(quota) = &node.variant else {
        panic!()
    };
    assert_eq!(quota.limit.0, 3 << 19);
    let BlockdevRef::Definition(child) = &quota.file else {
        panic!()
    };
    assert_eq!(child.children(), [("image", Referred::Reference("img"))]);
    let BlockdevDriverOptions::Blkdebug(debug) = &child.variant else {
        panic!()
    };
    let rule = &debug.inject_error.as_ref().unwrap()[0];
    assert_eq!(
        (rule.event, rule.errno, rule.once),
        (BlkdebugEvent::WriteAio, Some(28), Some(true))
    );
}

#[test]
fn keyval_json_and_serialized_form_mean_the_same() {
    let keyval = "blkdebug,node-name=d,align=4096,image.driver=file,image.filename=f,\
                  image.cache.direct=on,inject-error.0.event=none,inject-error.0.sector=-1";
    let node = BlockdevOptions::parse(keyval).unwrap();
    let expected = json!({
        "driver": "blkdebug",
        "node-name": "d",
        "align": 4096,
        "image": {"driver": "file", "filename": "f", "cache": {"direct": true}},
        "inject-error": [{"event": "none", "sector": -1}],
    });
    let value = serde_json::to_value(&node).unwrap();
    assert_eq!(value, expected);
    assert_eq!(BlockdevOptions::parse(&value.to_string()).unwrap(), node);
}

/// The input must not decide how much stack is used.
#[test]
fn deep_children() {
    let nested = |levels| {
        let mut text = r#"{"driver":"null-co"}"#.to_owned();
        for _ in 0..levels {
            text = format!(r#"{{"driver":"blkdebug","node-name":"n","image":{text}}}"#);
        }
        BlockdevOptions::parse(&text)
    };
    assert!(nested(32).is_ok());
    let desc = nested(120).unwrap_err().desc;
    assert!(
        desc.ends_with("is nested too deeply, at most 32 levels are accepted"),
        "{desc}"
    );
}
