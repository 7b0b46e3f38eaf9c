//! What the daemon says to a wrong command line, word for word.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use common::{Place, refused, stderr, stdout};

/// An image and a directory for sockets; `@` in a row stands for it.
fn place() -> Place {
    let place = Place::new();
    std::fs::write(place.file("disk.img"), vec![0; 4096]).unwrap();
    place
}

const NULL: &str = "--blockdev=null-co,node-name=n";
const RO: &str = "--blockdev=null-co,node-name=n,read-only=on";
const EXPORT: &str = "--export=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=@/e";

/// Arguments; the message between `standfastd: ` and the end of its line.
const TABLE: &[(&[&str], &str)] = &[
    (&["--frob"], "unrecognized option '--frob'"),
    (&["bar"], "bar: Unexpected argument"),
    (&["--export"], "option '--export' requires an argument"),
    // Nodes.
    (
        &["--blockdev", "driver=nosuch,node-name=n"],
        "--blockdev driver=nosuch,node-name=n: Parameter 'driver' does not accept value 'nosuch'",
    ),
    (
        &["--blockdev", "node-name=n"],
        "--blockdev node-name=n: Parameter 'driver' is missing",
    ),
    (
        &["--blockdev", "file,node-name=n"],
        "--blockdev file,node-name=n: Parameter 'filename' is missing",
    ),
    (
        &["--blockdev", "null-co"],
        "--blockdev null-co: 'node-name' must be specified for the root node",
    ),
    (
        &["--blockdev", "null-co,node-name=9n"],
        "--blockdev null-co,node-name=9n: Invalid node-name: '9n'",
    ),
    (
        &["--blockdev", "null-co,node-name=n,foo=1"],
        "--blockdev null-co,node-name=n,foo=1: Parameter 'foo' is unexpected",
    ),
    (
        &["--blockdev", "null-co,node-name=n,cache.direct=maybe"],
        "--blockdev null-co,node-name=n,cache.direct=maybe: Parameter 'cache.direct' expects 'on' \
         or 'off'",
    ),
    (
        &[
            "--blockdev",
            "{\"driver\":\"null-co\",\"node-name\":\"n\",\"read-only\":\"on\"}",
        ],
        "--blockdev {\"driver\":\"null-co\",\"node-name\":\"n\",\"read-only\":\"on\"}: Invalid \
         parameter type for 'read-only', expected: boolean",
    ),
    (
        &[NULL, NULL],
        "--blockdev=null-co,node-name=n: Duplicate nodes with node-name='n'",
    ),
    (
        &[
            "--blockdev",
            "quota,node-name=a,limit=1M,file.driver=null-co,file.node-name=a",
        ],
        "--blockdev quota,node-name=a,limit=1M,file.driver=null-co,file.node-name=a: Duplicate \
         nodes with node-name='a'",
    ),
    (
        &["--blockdev", "quota,node-name=q,limit=1M,file=zz"],
        "--blockdev quota,node-name=q,limit=1M,file=zz: Cannot find device='zz' nor node-name='zz'",
    ),
    (
        &["--blockdev", "file,node-name=n,filename=@/nosuch"],
        "--blockdev file,node-name=n,filename=@/nosuch: Could not open '@/nosuch': No such file or \
         directory",
    ),
    (
        &["--blockdev", "file,node-name=n,filename=@"],
        "--blockdev file,node-name=n,filename=@: Could not open '@': Is a directory",
    ),
    (
        &["--blockdev", "null-co,node-name=n,detect-zeroes=unmap"],
        "--blockdev null-co,node-name=n,detect-zeroes=unmap: setting detect-zeroes to unmap is not \
         allowed without setting discard operation to unmap",
    ),
    (
        // What is wrong with a node is said before anything below it is opened.
        &[
            "--blockdev",
            "raw,node-name=n,force-share=on,file.driver=file,file.filename=@/nosuch",
        ],
        "--blockdev raw,node-name=n,force-share=on,file.driver=file,file.filename=@/nosuch: \
         force-share=on can only be used with read-only images",
    ),
    (
        &["--blockdev", "null-co,node-name=n,size=-1"],
        "--blockdev null-co,node-name=n,size=-1: Value '-1' is out of range for parameter 'size'",
    ),
    (
        &["--blockdev", "null-co,node-name=n,latency-ns=-1"],
        "--blockdev null-co,node-name=n,latency-ns=-1: latency-ns is invalid",
    ),
    (
        &[NULL, "--blockdev", "raw,node-name=r,file=n,offset=-1"],
        "--blockdev raw,node-name=r,file=n,offset=-1: Value '-1' is out of range for parameter \
         'offset'",
    ),
    (
        &[NULL, "--blockdev", "raw,node-name=r,file=n,size=1000"],
        "--blockdev raw,node-name=r,file=n,size=1000: Specified size is not multiple of 512",
    ),
    (
        &[
            "--blockdev",
            "file,node-name=n,filename=@/nosuch,pr-manager=x",
        ],
        "--blockdev file,node-name=n,filename=@/nosuch,pr-manager=x: No persistent reservation \
         manager with id 'x'",
    ),
    (
        &[
            NULL,
            "--blockdev",
            "throttle,node-name=t,file=n,throttle-group=zz",
        ],
        "--blockdev throttle,node-name=t,file=n,throttle-group=zz: Throttle group 'zz' does not \
         exist",
    ),
    (
        &["--object", "throttle-group,id=g,x-bps-total=1,x-bps-read=2"],
        "--object throttle-group,id=g,x-bps-total=1,x-bps-read=2: bps/iops/max total values and \
         read/write values cannot be used at the same time",
    ),
    (
        &[
            NULL,
            "--blockdev",
            "quota,node-name=q,limit=1M,file=n,read-only=on",
        ],
        "--blockdev quota,node-name=q,limit=1M,file=n,read-only=on: Node 'q' cannot be read-only \
         on 'n', which is not: set read-only=on for 'n'",
    ),
    (
        &[
            NULL,
            "--blockdev",
            "blkdebug,node-name=b,image=n,inject-error.0.event=none,inject-error.0.errno=-5",
        ],
        "--blockdev blkdebug,node-name=b,image=n,inject-error.0.event=none,inject-error.0.errno=-5: \
         blkdebug: errno -5 is out of range",
    ),
    (
        &[NULL, "--blockdev", "blkdebug,node-name=b,image=n,align=7"],
        "--blockdev blkdebug,node-name=b,image=n,align=7: Cannot meet constraints with align 7",
    ),
    // Exports.
    (
        &[EXPORT],
        "--export=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=@/e: Cannot find \
         device='' nor node-name='n'",
    ),
    (
        &[NULL, EXPORT, EXPORT],
        "--export=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=@/e: Block export id \
         'e' is already in use",
    ),
    (
        &[
            NULL,
            "--export=vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str=99",
        ],
        "--export=vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str=99: File descriptor '99' is \
         not a socket",
    ),
    (
        &[
            NULL,
            "--export=vhost-user-blk,id=9e,node-name=n,addr.type=unix,addr.path=@/e",
        ],
        "--export=vhost-user-blk,id=9e,node-name=n,addr.type=unix,addr.path=@/e: Invalid block \
         export id",
    ),
    (
        &[
            RO,
            "--export=vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path=@/e",
        ],
        "--export=vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path=@/e: Cannot \
         export read-only node as writable",
    ),
    (
        &[
            NULL,
            "--export=vhost-user-blk,id=e,node-name=n,iothread=i,addr.type=unix,addr.path=@/e",
        ],
        "--export=vhost-user-blk,id=e,node-name=n,iothread=i,addr.type=unix,addr.path=@/e: \
         iothread \"i\" not found",
    ),
    (
        &[
            NULL,
            "--object=iothread,id=i",
            "--export=vhost-user-blk,id=e,node-name=n,iothread.0=i,iothread.1=j,addr.type=unix,\
             addr.path=@/e",
        ],
        "--export=vhost-user-blk,id=e,node-name=n,iothread.0=i,iothread.1=j,addr.type=unix,\
         addr.path=@/e: iothread \"j\" not found",
    ),
    (
        &[
            NULL,
            "--export=vhost-user-blk,id=e,node-name=n,num-queues=0,addr.type=unix,addr.path=@/e",
        ],
        "--export=vhost-user-blk,id=e,node-name=n,num-queues=0,addr.type=unix,addr.path=@/e: \
         num-queues must be greater than 0",
    ),
    (
        &[NULL, "--export=nbd,id=e,node-name=n"],
        "--export=nbd,id=e,node-name=n: Parameter 'type' does not accept value 'nbd'",
    ),
    (
        &[
            NULL,
            "--export=vhost-user-blk,id=e,node-name=n,werror=retry,addr.type=unix,addr.path=@/e",
        ],
        "--export=vhost-user-blk,id=e,node-name=n,werror=retry,addr.type=unix,addr.path=@/e: \
         Parameter 'werror' does not accept value 'retry'",
    ),
    (
        &[
            NULL,
            "--export=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=@/no/e",
        ],
        "--export=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=@/no/e: Failed to bind \
         socket to @/no/e: No such file or directory",
    ),
    (
        &[
            NULL,
            "--export=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=@/disk.img",
        ],
        "--export=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=@/disk.img: Failed to \
         bind socket to @/disk.img: Address already in use",
    ),
    // Character devices and monitors.
    (
        &["--chardev", "stdio"],
        "--chardev stdio: chardev: no id specified",
    ),
    (
        &["--chardev", "socket,id=c"],
        "--chardev socket,id=c: Unable to parse FD number ",
    ),
    (
        &["--chardev", "socket,id=c,fd=99999,server=on,wait=off"],
        "--chardev socket,id=c,fd=99999,server=on,wait=off: File descriptor '99999' is not a socket",
    ),
    (
        &["--chardev", "socket,id=c,path=@/nosuch"],
        "--chardev socket,id=c,path=@/nosuch: Failed to connect to '@/nosuch': No such file or \
         directory",
    ),
    (
        &["--chardev", "stdio,id=c", "--chardev", "stdio,id=c"],
        "--chardev stdio,id=c: attempt to add duplicate property 'c' to object (type 'container')",
    ),
    (
        &["--chardev", "stdio,id=c", "--chardev", "stdio,id=d"],
        "--chardev stdio,id=d: cannot use stdio by multiple character devices",
    ),
    (
        &["--monitor", "chardev=c"],
        "--monitor chardev=c: chardev \"c\" not found",
    ),
    (
        &[
            "--chardev",
            "stdio,id=c",
            "--monitor",
            "c",
            "--monitor",
            "c",
        ],
        "--monitor c: Device 'c' is in use",
    ),
    (
        &["--monitor", "c", "--chardev", "stdio,id=c"],
        "--monitor c: chardev \"c\" not found",
    ),
    (
        &["--monitor", "c,mode=readline"],
        "--monitor c,mode=readline: Only QMP is supported",
    ),
    // Objects.
    (
        &["--object", "nosuch,id=t"],
        "--object nosuch,id=t: Parameter 'qom-type' does not accept value 'nosuch'",
    ),
    (
        &["--object", "iothread,id=i", "--object", "iothread,id=i"],
        "--object iothread,id=i: attempt to add duplicate property 'i' to object (type 'container')",
    ),
    // Help.
    (
        &["--blockdev", "null-co,help"],
        "--blockdev null-co,help: Help is not available for this option",
    ),
    (
        &["--export", "help"],
        "--export help: Help is not available for this option",
    ),
    (
        &["--monitor", "?"],
        "--monitor ?: Help is not available for this option",
    ),
    (
        &["--object", "help,iothread"],
        "--object help,iothread: Expected '=' after parameter 'iothread'",
    ),
    (
        &["--nbd-server", "help"],
        "--nbd-server help: Help is not available for this option",
    ),
    (
        &["--nbd-server", "addr.type=unix,addr.path=@/nbd"],
        "--nbd-server addr.type=unix,addr.path=@/nbd: an NBD server is not supported",
    ),
    // More of character devices.
    (
        &["--chardev", "null,id=c,mux,foo=1"],
        "--chardev null,id=c,mux,foo=1: Invalid parameter 'foo'",
    ),
    (
        &["--chardev", "file,id=c,path=@/no/f"],
        "--chardev file,id=c,path=@/no/f: Could not open '@/no/f': No such file or directory",
    ),
    (
        &["--chardev", "null,id=c,logfile=@/no/f"],
        "--chardev null,id=c,logfile=@/no/f: Could not create '@/no/f': No such file or directory",
    ),
    (
        &["--chardev", "pty,id=c,path=@/no/p"],
        "--chardev pty,id=c,path=@/no/p: Failed to create PTY symlink: No such file or directory",
    ),
    (
        &["--chardev", "socket,id=c,path=@/no/s,server=on,wait=off"],
        "--chardev socket,id=c,path=@/no/s,server=on,wait=off: Failed to bind socket to @/no/s: No \
         such file or directory",
    ),
    (
        &["--chardev", "socket,id=c,host=127.0.0.1,port=x"],
        "--chardev socket,id=c,host=127.0.0.1,port=x: address resolution failed for 127.0.0.1:x: \
         Servname not supported for ai_socktype",
    ),
    (
        &["--chardev", "socket,id=c,host=127.0.0.1,port=1"],
        "--chardev socket,id=c,host=127.0.0.1,port=1: Failed to connect to '127.0.0.1:1': \
         Connection refused",
    ),
    (
        &[
            "--chardev",
            "socket,id=c,host=127.0.0.1,port=0,ipv4=off,server=on,wait=off",
        ],
        "--chardev socket,id=c,host=127.0.0.1,port=0,ipv4=off,server=on,wait=off: address \
         resolution failed for 127.0.0.1:0: Address family for hostname not supported",
    ),
    (
        &["--chardev", "socket,id=c,path=nosuch,abstract=on"],
        "--chardev socket,id=c,path=nosuch,abstract=on: Failed to connect to 'nosuch': Connection \
         refused",
    ),
    (
        &["--daemonize", "--chardev", "stdio,id=c"],
        "--chardev stdio,id=c: cannot use stdio with -daemonize",
    ),
    // Images that are passed.
    (
        &["--blockdev", "file,node-name=n,filename=/dev/fdset/x"],
        "--blockdev file,node-name=n,filename=/dev/fdset/x: Could not parse fdset /dev/fdset/x",
    ),
    (
        &["--blockdev", "file,node-name=n,filename=/dev/fdset/3"],
        "--blockdev file,node-name=n,filename=/dev/fdset/3: Could not dup FD for /dev/fdset/3 flags \
         2: No such file or directory",
    ),
    // The pid file.
    (
        &["--daemonize", "--pidfile", "@"],
        "cannot create PID file: Could not create '@': Is a directory",
    ),
    (
        &["--pidfile", "@/no/pid"],
        "cannot create PID file: Could not create '@/no/pid': No such file or directory",
    ),
];

#[test]
fn mistakes_are_told_in_qemu_s_words() {
    let place = place();
    let dir = place.name("");
    let dir = dir.trim_end_matches('/');
    for (args, message) in TABLE {
        let args: Vec<_> = args.iter().map(|arg| arg.replace('@', dir)).collect();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let output = refused(&args);
        let line = format!("standfastd: {}", message.replace('@', dir));
        let said = stderr(&output);
        assert!(
            said.lines().any(|said| said == line),
            "{args:?}\nexpected {line}\nsaid {said}"
        );
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(
            place.files(),
            ["disk.img"],
            "{args:?} leaves something behind"
        );
    }
}

#[test]
fn what_may_be_written_in_more_than_one_way() {
    let place = place();
    // The mistake at the end shows that everything before it was taken.
    let end = ["--monitor", "end"];
    for args in [
        &["--blockdev={'driver':'null-co','node-name':'n','size':512,}"][..],
        &["--blockdev", "driver=null-co,node-name=n,"],
        &["--blockd", "null-co,node-name=n"],
        &["--object", "iothread,id=i,poll-max-ns=0x10"],
        &["--object", "{\"qom-type\":\"iothread\",\"id\":\"i\"}"],
        &[
            "--blockdev",
            "quota,node-name=q,limit=1.5G,file.driver=null-co",
        ],
        &[
            NULL,
            "--blockdev",
            "blkdebug,node-name=b,image=n,inject-error.0.event=write_aio,\
          inject-error.0.errno=28,inject-error.0.once=on,set-state.0.event=read_aio,\
          set-state.0.new_state=2",
        ],
    ] {
        // JSON has no comma at its end.
        let args: Vec<_> = args.iter().map(|arg| arg.replace(",}", "}")).collect();
        let args: Vec<_> = args.iter().map(String::as_str).chain(end).collect();
        let said = stderr(&refused(&args));
        assert!(
            said.contains("standfastd: --monitor end: chardev \"end\" not found"),
            "{args:?}\n{said}"
        );
    }
    assert_eq!(place.files(), ["disk.img"]);
}

#[test]
fn help_and_version() {
    for option in ["--help", "-h"] {
        let output = refused(&[option]);
        assert_eq!(output.status.code(), Some(0));
        let said = stdout(&output);
        assert!(said.contains("Usage: standfastd"), "{said}");
    }
    for option in ["--version", "-V"] {
        let output = refused(&[option]);
        let said = stdout(&output);
        let third = said.split_whitespace().nth(2);
        assert_eq!(third, Some(env!("CARGO_PKG_VERSION")), "{said}");
    }
}

#[test]
fn help_of_options() {
    for (args, first, code) in [
        (
            &["--object", "help"][..],
            "List of user creatable objects:",
            0,
        ),
        (&["--object", "iothread,help"], "iothread options:", 0),
        (
            &["--chardev", "help"],
            "Available chardev backend types: ",
            0,
        ),
        (&["--chardev", "socket,help"], "chardev options:", 1),
        // What is before it is executed, what is behind it is not.
        (
            &[NULL, "--object=?", "--monitor=x"],
            "List of user creatable objects:",
            0,
        ),
        (
            &["--daemonize", "--object", "help"],
            "List of user creatable objects:",
            1,
        ),
    ] {
        let output = refused(args);
        let said = stdout(&output);
        assert_eq!(said.lines().next(), Some(first), "{args:?}");
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert_eq!(stderr(&output), "", "{args:?}");
    }
    let output = refused(&["--monitor=x", "--object=help"]);
    assert_eq!(stdout(&output), "");
}

#[test]
fn short_forms_are_warned_of() {
    let place = place();
    let chardev = format!("socket,id=c,path={},server,nowait", place.name("q"));
    let said = stderr(&refused(&["--chardev", &chardev, "--monitor", "d"]));
    let expected = format!(
        "standfastd: --chardev {chardev}: warning: short-form boolean option 'server' deprecated\n\
         Please use server=on instead\n\
         standfastd: --chardev {chardev}: warning: short-form boolean option 'nowait' deprecated\n\
         Please use wait=off instead\n\
         standfastd: --monitor d: chardev \"d\" not found\n"
    );
    assert_eq!(said, expected);
}

/// The control plane has no error for that, so the daemon asks before it makes it.
#[test]
fn too_few_file_descriptors() {
    for limit in [6, 20] {
        let script =
            format!("ulimit -n {limit} && exec \"$0\" --blockdev driver=null-co,node-name=n");
        let output = std::process::Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_standfastd")])
            .output()
            .unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{limit}: {said}");
        assert!(
            said.contains("Too many open files; raise the limit"),
            "{limit}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{limit}: {said}");
    }
}
