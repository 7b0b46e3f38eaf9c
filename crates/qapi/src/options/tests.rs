use super::*;
use crate::QmpError;
use serde_json::json;

fn blockdev(text: &str) -> String {
    BlockdevOptions::parse(text).unwrap_err().desc
}

fn export(text: &str) -> String {
    ExportOptions::parse(text).unwrap_err().desc
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
            "null-co,node-name=a,latency-ns=-1",
            "Parameter 'latency-ns' expects uint64",
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
            "Invalid parameter type for 'latency-ns', expected: integer",
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
    assert_eq!(
        child.child(),
        Some(("image", &BlockdevRef::Reference("img".to_owned())))
    );
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

#[test]
fn export_error_texts() {
    let e = "vhost-user-blk,id=e,node-name=n";
    let a = "addr.type=unix,addr.path=/s";
    for (text, desc) in [
        (
            "nosuch,id=e".to_owned(),
            "Parameter 'type' does not accept value 'nosuch'",
        ),
        ("id=e".to_owned(), "Parameter 'type' is missing"),
        ("vhost-user-blk".to_owned(), "Parameter 'id' is missing"),
        (
            "vhost-user-blk,id=e".to_owned(),
            "Parameter 'node-name' is missing",
        ),
        (e.to_owned(), "Parameter 'addr' is missing"),
        (format!("{e},path=/s"), "Parameter 'addr' is missing"),
        (
            format!("{e},addr.type=unix"),
            "Parameter 'addr.path' is missing",
        ),
        (
            format!("{e},addr.path=/s"),
            "Parameter 'addr.type' is missing",
        ),
        (
            format!("{e},addr.type=foo"),
            "Parameter 'type' does not accept value 'foo'",
        ),
        (
            format!("{e},{a},addr.x=1"),
            "Parameter 'addr.x' is unexpected",
        ),
        (format!("{e},{a},x=1"), "Parameter 'x' is unexpected"),
        (
            format!("vhost-user-blk,id=9e,node-name=n,{a}"),
            "Invalid block export id",
        ),
        (
            format!("{e},{a},num-queues=65536"),
            "Parameter 'num-queues' expects uint16_t",
        ),
        (
            format!("{e},{a},num-queues=-1"),
            "Parameter 'num-queues' expects uint16_t",
        ),
        (
            format!("{e},{a},num-queues=x"),
            "Parameter 'num-queues' expects integer",
        ),
        (
            format!("{e},{a},num-queues=0"),
            "num-queues must be greater than 0",
        ),
        (
            format!("{e},{a},num-queues=257"),
            "Property e.num-queues doesn't take value 257 (minimum: 1, maximum: 256)",
        ),
        (
            format!("{e},{a},queue-size=2"),
            "invalid queue-size property (2), must be > 2",
        ),
        (
            format!("{e},{a},queue-size=100"),
            "invalid queue-size property (100), must be a power of 2 (max 1024)",
        ),
        (
            format!("{e},{a},queue-size=2048"),
            "invalid queue-size property (2048), must be a power of 2 (max 1024)",
        ),
        (
            format!("{e},{a},iothread.0=a,iothread.2=b"),
            "Parameter 'iothread.1' missing",
        ),
        (
            format!("{e},{a},iothread.0=a,iothread.1=b,iothread.2=a"),
            "iothread \"a\" is named more than once",
        ),
        (
            format!("{e},{a},iothread.a=b"),
            "Invalid parameter type for 'iothread', expected: BlockExportIothreads",
        ),
        (
            format!("{e},{a},logical-block-size=1Z"),
            "Parameter 'logical-block-size' expects size",
        ),
        (
            format!("{e},{a},logical-block-size=513"),
            "Property e.logical-block-size doesn't take value '513', it's not a power of 2",
        ),
        (
            format!("{e},{a},logical-block-size=4M"),
            "Property e.logical-block-size doesn't take value 4194304 \
             (minimum: 512, maximum: 2097152)",
        ),
        (
            format!("{e},{a},serial=123456789012345678901"),
            "Property e.serial doesn't take value '123456789012345678901', \
             it has more than 20 bytes",
        ),
        (
            format!("{e},{a},werror=foo"),
            "Parameter 'werror' does not accept value 'foo'",
        ),
        (
            format!("{e},{a},hold-scope=all"),
            "Parameter 'hold-scope' does not accept value 'all'",
        ),
        (
            format!("{e},{a},writable=1"),
            "Parameter 'writable' expects 'on' or 'off'",
        ),
    ] {
        assert_eq!(export(&text), desc, "{text}");
    }
    assert_eq!(
        export(
            r#"{"type":"vhost-user-blk","id":"e","node-name":"n","addr":{"type":"unix","path":"s"},"num-queues":65536}"#
        ),
        "Parameter 'num-queues' expects uint16_t"
    );
}

#[test]
fn export_iothreads() {
    let tail = "addr.type=unix,addr.path=s";
    let names = |text: &str| {
        let export = ExportOptions::parse(text).unwrap();
        let json = serde_json::to_string(&export).unwrap();
        assert_eq!(ExportOptions::parse(&json).unwrap(), export, "{json}");
        export.base.iothread.map(|i| i.names().to_vec())
    };
    let json = |iothread: &str| {
        format!(
            r#"{{"type":"vhost-user-blk","id":"e","node-name":"n",
                "addr":{{"type":"unix","path":"s"}},"iothread":{iothread}}}"#
        )
    };
    let e = format!("vhost-user-blk,id=e,node-name=n,{tail}");
    let (one, two) = (["a".to_owned()], ["a".to_owned(), "b".to_owned()]);
    assert_eq!(names(&e), None);
    assert_eq!(names(&format!("{e},iothread=a")).unwrap(), one);
    assert_eq!(names(&format!("{e},iothread.0=a")).unwrap(), one);
    assert_eq!(
        names(&format!("{e},iothread.0=a,iothread.1=b")).unwrap(),
        two
    );
    assert_eq!(names(&json(r#"["a","b"]"#)).unwrap(), two);
    assert_eq!(names(&json(r#""a""#)).unwrap(), one);
    for (iothread, expected) in [
        ("[]", "'iothread' must name at least one iothread"),
        (
            "7",
            "Invalid parameter type for 'iothread', expected: BlockExportIothreads",
        ),
        (
            "[7]",
            "Invalid parameter type for 'iothread[0]', expected: string",
        ),
    ] {
        let error = ExportOptions::parse(&json(iothread)).unwrap_err();
        assert_eq!(error.desc, expected);
    }
}

#[test]
fn export_values() {
    let export = ExportOptions::parse(
        "vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str=7,werror=enospace,rerror=stop,\
         hold-scope=request,writable=on,logical-block-size=4K,num-queues=4,iothread=io0",
    )
    .unwrap();
    assert_eq!(export.base.werror, Some(OnError::Enospc));
    assert_eq!(export.base.rerror, Some(OnError::Stop));
    assert_eq!(export.base.hold_scope, Some(HoldScope::Request));
    let ExportVariant::VhostUserBlk(blk) = &export.variant;
    assert_eq!((blk.logical_block_size(), blk.num_queues()), (4096, 4));
    assert_eq!(
        blk.addr.variant,
        SocketAddressVariant::Fd(FdAddress {
            str: "7".to_owned()
        })
    );
    assert_eq!(OnError::Auto.for_writes(), OnError::Enospc);
    assert_eq!(OnError::Auto.for_reads(), OnError::Report);
    // What is written is the one spelling QEMU has.
    assert_eq!(serde_json::to_value(&export).unwrap()["werror"], "enospc");
}

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
fn vmm_links_by_socket() {
    let object = |text: &str| ObjectOptions::parse(text).map_err(|e| e.desc);
    let socket = || VmmSocketOptions {
        path: "run/vm,0.sock".to_owned(),
    };
    for (name, variant) in [
        ("vmm-qemu", ObjectVariant::VmmQemu(socket())),
        (
            "vmm-cloud-hypervisor",
            ObjectVariant::VmmCloudHypervisor(socket()),
        ),
        ("vmm-firecracker", ObjectVariant::VmmFirecracker(socket())),
    ] {
        let parsed = object(&format!("{name},id=vm0,path=run/vm,,0.sock")).unwrap();
        assert_eq!((&*parsed.base.id, parsed.kind().name()), ("vm0", name));
        assert_eq!(parsed.variant, variant);
        let missing = object(&format!("{name},id=vm0")).unwrap_err();
        assert_eq!(missing, "Parameter 'path' is missing");
    }
    let long = "x".repeat(108);
    for (path, desc) in [
        ("", "Parameter 'path' expects the path of the VMM's socket"),
        ("\0a", "Parameter 'path' contains a NUL byte"),
        (
            &*long,
            &*format!("UNIX socket path '{long}' is too long\nPath must be less than 108 bytes"),
        ),
    ] {
        let text = format!("vmm-qemu,id=vm0,path={path}");
        assert_eq!(object(&text).unwrap_err(), desc);
    }
    assert!(object(&format!("vmm-qemu,id=vm0,path={}", &long[1..])).is_ok());
}

#[test]
fn vmm_links_by_commands() {
    let parsed = |text: &str| match ObjectOptions::parse(text) {
        Ok(ObjectOptions {
            variant: ObjectVariant::VmmCommand(command),
            ..
        }) => {
            let state = command.state.as_ref();
            let words = |argv: &VmmArgv, name| argv.words(name).unwrap().join(" ");
            Ok([
                words(&command.pause, "pause"),
                words(&command.resume, "resume"),
                state.map_or(String::new(), |state| words(state, "state")),
            ])
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.desc),
    };
    let expected = ["p a,b", "r", ""].map(str::to_owned);
    for text in [
        r#"vmm-command,id=vm0,pause=["p",,"a,,b"],resume=["r"]"#,
        "vmm-command,id=vm0,pause.0=p,pause.1=a,,b,resume.0=r",
        r#"{"qom-type": "vmm-command", "id": "vm0", "pause": ["p", "a,b"], "resume": ["r"]}"#,
        r#"{"qom-type": "vmm-command", "id": "vm0", "pause": ["p", "a,b"], "resume": "[\"r\"]"}"#,
    ] {
        assert_eq!(parsed(text), Ok(expected.clone()), "{text}");
    }
    let state = parsed("vmm-command,id=vm0,pause.0=p,resume.0=r,state.0=/s,state.1=").unwrap();
    assert_eq!(state[2], "/s ");

    let no_list = |name: &str| {
        format!(
            "Parameter '{name}' expects a program and its arguments as a JSON list of strings, \
             such as [\"/bin/vm-{name}\", \"vm0\"]; in key=value options each comma of it is doubled"
        )
    };
    for (properties, desc) in [
        ("resume=[\"r\"]", "Parameter 'pause' is missing".to_owned()),
        ("pause=[\"p\"]", "Parameter 'resume' is missing".to_owned()),
        ("pause=p,resume.0=r", no_list("pause")),
        ("pause=[1],resume.0=r", no_list("pause")),
        ("pause.0=p,resume={}", no_list("resume")),
        ("pause.0=p,resume.0=r,state=", no_list("state")),
        (
            "pause=[],resume.0=r",
            "Parameter 'pause' is an empty list: its first element must be the program".to_owned(),
        ),
        (
            "pause.0=p,resume=[\"\",,\"a\"]",
            "Parameter 'resume' begins with an empty text: its first element must be the program"
                .to_owned(),
        ),
        (
            "pause=[\"p\",,\"\\u0000\"],resume.0=r",
            "Parameter 'pause' contains a NUL byte".to_owned(),
        ),
        (
            "pause.0=p,resume.0=r,path=x",
            "Parameter 'path' is unexpected".to_owned(),
        ),
        (
            "pause.x=p,resume.0=r",
            "Invalid parameter type for 'pause', expected: VmmArgv".to_owned(),
        ),
    ] {
        let text = format!("vmm-command,id=vm0,{properties}");
        assert_eq!(parsed(&text), Err(desc), "{text}");
    }
}

#[test]
fn who_may_connect_to_an_export() {
    let parsed = |options: &str| {
        let text = format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=s,{options}");
        let ExportVariant::VhostUserBlk(options) =
            ExportOptions::parse(&text).map_err(|e| e.desc)?.variant;
        match options.addr.variant {
            SocketAddressVariant::Unix(address) => Ok(address.access()),
            SocketAddressVariant::Fd(_) => Err("a descriptor".to_owned()),
        }
    };
    let access = parsed("addr.mode=0660,addr.group=kvm").unwrap();
    assert_eq!(access.mode(), Ok(0o660));
    assert_eq!((access.owner, access.group.as_deref()), (None, Some("kvm")));
    assert!(parsed("writable=on").unwrap().is_default());
    assert_eq!(
        parsed("addr.mode=888").unwrap_err(),
        "Parameter 'mode' expects octal permissions up to 0777, such as 0660, not '888'"
    );
    assert_eq!(
        parsed("addr.owner=").unwrap_err(),
        "Parameter 'owner' expects a name or a number"
    );
    let fd = "vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str=3,addr.mode=0660";
    assert_eq!(export(fd), "Parameter 'addr.mode' is unexpected");
}

#[test]
fn chardev() {
    let parse = |text: &str| ChardevOptions::parse(text).map_err(|e: QmpError| e.desc);
    for (text, desc) in [
        ("foo", "chardev: no id specified"),
        ("", "chardev: no id specified"),
        ("{\"id\":\"a\"}", "chardev: no id specified"),
        ("foo,id=a", "'foo' is not a valid char driver name"),
        (
            "pty,id=a",
            "chardev 'a': backend 'pty' is not supported, use 'socket' or 'stdio'",
        ),
        ("id=a", "chardev: \"a\" missing backend"),
        ("socket,id=a", "Parameter 'path' is missing"),
        (
            "socket,id=a,path=p,server=maybe",
            "Parameter 'server' expects 'on' or 'off'",
        ),
        (
            "socket,id=a,path=p,serverx=on",
            "Invalid parameter 'serverx'",
        ),
        (
            "socket,id=a,path=p,fd=3",
            "'path' and 'fd' are mutually exclusive",
        ),
        (
            "socket,id=a,host=h,port=1",
            "Parameter 'host' is not supported: a chardev socket is a unix socket, use 'path'",
        ),
        (
            "socket,id=a,path=p,wait=off,noserver",
            "'wait' option is incompatible with socket in client connect mode",
        ),
        (
            "socket,id=a,path=p,server=on,mode=rw",
            "Parameter 'mode' expects octal permissions up to 0777, such as 0660, not 'rw'",
        ),
        (
            "socket,id=a,path=p,mode=0660",
            "'mode', 'owner' and 'group' are for a socket that is made: use 'path' and 'server=on'",
        ),
        (
            "socket,id=a,fd=3,server=on,group=kvm",
            "'mode', 'owner' and 'group' are for a socket that is made: use 'path' and 'server=on'",
        ),
        (
            "stdio,id=a,signal=x",
            "Parameter 'signal' expects 'on' or 'off'",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), desc, "{text}");
    }
    let socket = |path: &str, server, wait| ChardevOptions {
        id: "a".to_owned(),
        backend: ChardevBackend::Socket {
            address: ChardevSocketAddress::Path(path.to_owned()),
            server,
            wait,
            access: SocketAccess::default(),
        },
    };
    assert_eq!(
        parse("socket,id=a,path=p,,q,server=on,wait=off").unwrap(),
        socket("p,q", true, false)
    );
    assert_eq!(
        parse("socket,id=a,path=p,server,nowait").unwrap(),
        socket("p", true, false)
    );
    assert_eq!(
        parse("socket,path=x,id=a,server=on,path=p,").unwrap(),
        socket("p", true, true)
    );
    assert_eq!(
        parse("socket,id=a,path=p").unwrap(),
        socket("p", false, false)
    );
    let text = "socket,id=a,path=p,server=on,mode=0660,owner=qemu,group=36";
    let ChardevBackend::Socket { access, .. } = parse(text).unwrap().backend else {
        panic!("{text}");
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        (access.mode, access.owner, access.group),
        (some("0660"), some("qemu"), some("36"))
    );
    assert_eq!(
        parse("stdio,id=a,signal=off").unwrap().backend,
        ChardevBackend::Stdio { signal: false }
    );
}

proptest::proptest! {
    #[test]
    fn any_text_is_an_option_or_an_error(text in "[a-e{}\\[\\]\":,.=0-9 -]{0,64}") {
        let _ = BlockdevOptions::parse(&text);
        let _ = ExportOptions::parse(&text);
        let _ = ObjectOptions::parse(&text);
        let _ = MonitorOptions::parse(&text);
        let _ = ChardevOptions::parse(&text);
    }
}
