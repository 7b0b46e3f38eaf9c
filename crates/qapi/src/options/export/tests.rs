use super::*;

fn export(text: &str) -> String {
    ExportOptions::parse(text).unwrap_err().desc
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
            format!("{e},{a},addr.abstract=on,addr.mode=0660"),
            "'mode', 'owner' and 'group' are for a socket that is made: use a path that is not abstract",
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
            format!("{e},{a},stats-intervals.0=60,stats-intervals.1=0"),
            "Invalid interval length: 0",
        ),
        (
            format!("{e},{a},stats-intervals=60"),
            "Invalid parameter type for 'stats-intervals', expected: array",
        ),
        (
            format!("{e},{a},account-failed=maybe"),
            "Parameter 'account-failed' expects 'on' or 'off'",
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
fn who_may_connect_to_an_export() {
    let parsed = |options: &str| {
        let text = format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=s,{options}");
        let ExportVariant::VhostUserBlk(options) =
            ExportOptions::parse(&text).map_err(|e| e.desc)?.variant;
        match options.addr.variant {
            SocketAddressVariant::Unix(address) => Ok(address.access()),
            _ => Err("another one".to_owned()),
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
    let nowhere = "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=";
    assert_eq!(
        ExportOptions::parse(nowhere).unwrap_err().desc,
        "Parameter 'addr.path' is empty: a socket needs a path"
    );
    let fd = "vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str=3,addr.mode=0660";
    assert_eq!(
        ExportOptions::parse(fd).unwrap_err().desc,
        "Parameter 'addr.mode' is unexpected"
    );
}

#[test]
fn how_an_export_counts() {
    let with =
        |more: &str| format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=p{more}");
    let intervals = (0..33).map(|n| format!(",stats-intervals.{n}=1"));
    assert_eq!(
        export(&with(&intervals.collect::<String>())),
        "'stats-intervals' must not have more than 32 elements"
    );
    let text = with(",stats-intervals.0=5,stats-intervals.1=60,account-failed=off");
    let base = ExportOptions::parse(&text).unwrap().base;
    assert_eq!(base.stats_intervals, Some(vec![5, 60]));
    assert_eq!(
        (base.account_failed, base.account_invalid),
        (Some(false), None)
    );
}
