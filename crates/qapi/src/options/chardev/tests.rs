use super::*;
use crate::QmpError;

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
