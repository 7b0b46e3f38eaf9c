//! Metrics as strangers see them: curl, the parser of the Prometheus project, and clients that mean no good.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use listener::Access;
use standfast_metrics::{
    Address, Counter, Family, Gauge, Histogram, Metrics, Series, Server, ServerError, Unit,
    exponential_buckets,
};

type Device = Vec<(&'static str, String)>;

/// Long enough for a slow machine; what is cut off after some seconds is so within this.
const LIMIT: Duration = Duration::from_secs(120);

const NASTY: [&str; 6] = [
    "quote\" and comma,",
    "two\nlines",
    "back\\slash\\n",
    "} 1\n# EOF",
    "\u{fffd}\u{0}\u{1}\r\t",
    "\u{1f525}\u{202e}",
];

/// What lives as long as the devices do.
type Devices = Vec<(Series<Device, Counter>, Series<Device, Histogram>)>;

fn metrics() -> (Metrics, Devices) {
    let metrics = Metrics::default();
    let requests: Family<Device, Counter> = metrics
        .family(
            "requests",
            "Requests that have ended",
            Unit::None,
            Counter::default,
        )
        .unwrap();
    let latency = metrics.family(
        "request_duration",
        "How long they took",
        Unit::Seconds,
        || Histogram::new(exponential_buckets(1e-6, 4.0, 12)),
    );
    let latency: Family<Device, Histogram> = latency.unwrap();
    let held = metrics.add(
        "held_requests",
        "Requests that are held",
        Unit::None,
        Gauge::<i64>::default(),
    );
    held.unwrap().set(3);
    let devices = (1_u32..).zip(NASTY).map(|(n, name)| {
        let labels = vec![("device", name.to_owned())];
        let (requests, latency) = (requests.series(labels.clone()), latency.series(labels));
        requests.inc_by(n.into());
        latency.observe(f64::from(n) / 1000.0);
        (requests, latency)
    });
    let devices = devices.collect();
    (metrics, devices)
}

fn on_a_port(metrics: &Metrics) -> (Server, SocketAddr) {
    let address: Address = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(&address, Access::default(), metrics.clone()).unwrap();
    let port = server.port().unwrap();
    (server, port)
}

fn curl(arguments: &[&str]) -> (bool, String) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60"]);
    let output = curl.args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn status_of(arguments: &[&str]) -> String {
    let (_, text) = curl(
        &[
            &["--output", "/dev/null", "--write-out", "%{http_code}"],
            arguments,
        ]
        .concat(),
    );
    text
}

/// Has the text parsed; returns each sample as `name|labels|value`, as Python prints them.
fn parsed(text: &str) -> Vec<String> {
    let program = "import sys\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
        text = sys.stdin.buffer.read().decode()\n\
        for family in parse(text):\n\
        \x20   for s in family.samples:\n\
        \x20       print(s.name, ascii(s.labels.get('device', '')), float(s.value), sep='|')\n";
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "not as Prometheus wants it:\n{text}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn curl_reads_and_prometheus_understands() {
    let (metrics, devices) = metrics();
    let (server, port) = on_a_port(&metrics);
    let url = format!("http://{port}/metrics");
    let (well, text) = curl(&["--include", &url]);
    assert!(well, "{text}");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.lines().any(|line| line == kind), "{head}");
    let samples = parsed(body);
    assert!(
        samples.contains(&"standfast_held_requests|''|3.0".to_owned()),
        "{samples:?}"
    );
    for (n, name) in [
        "'quote\" and comma,'",
        "'two\\nlines'",
        "'back\\\\slash\\\\n'",
        "'} 1\\n# EOF'",
    ]
    .iter()
    .enumerate()
    {
        let sample = format!("standfast_requests_total|{name}|{}.0", n + 1);
        assert!(samples.contains(&sample), "{sample} is not in {samples:?}");
    }
    let count = |name: &str| samples.iter().filter(|line| line.starts_with(name)).count();
    assert_eq!(count("standfast_requests_total|"), NASTY.len());
    assert_eq!(
        count("standfast_request_duration_seconds_bucket|"),
        NASTY.len() * 13
    );
    // Devices that have gone have left nothing.
    drop(devices);
    let (_, text) = curl(&[&url]);
    assert_eq!(parsed(&text).len(), 1);
    drop(server);
    assert!(!curl(&[&url]).0, "it is gone");
}

#[test]
fn what_else_curl_asks_for() {
    let (metrics, _devices) = metrics();
    let (_server, port) = on_a_port(&metrics);
    let url = format!("http://{port}/metrics");
    assert_eq!(status_of(&["--head", &url]), "200");
    assert_eq!(status_of(&["--http1.0", &url]), "200");
    assert_eq!(status_of(&[&format!("{url}?name=x")]), "200");
    assert_eq!(status_of(&[&format!("http://{port}/")]), "404");
    assert_eq!(
        status_of(&["--path-as-is", &format!("http://{port}/../metrics")]),
        "404"
    );
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (_, text) = curl(&["--include", "--request", method, "--data", "x", &url]);
        assert!(
            text.starts_with("HTTP/1.1 405 ") && text.contains("allow: GET, HEAD"),
            "{text}"
        );
    }
    let huge = format!("X: {}", "x".repeat(60_000));
    assert_eq!(status_of(&["--header", &huge, &url]), "431");
    let mut stream = TcpStream::connect(port).unwrap();
    stream.write_all(b"this is not HTTP\r\n\r\n").unwrap();
    assert!(read_all(&mut stream).starts_with("HTTP/1.1 400 "));
}

#[test]
fn a_unix_socket_is_private_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.sock");
    let (metrics, _devices) = metrics();
    let address = Address::Unix(path.clone());
    let server = Server::start(&address, Access::default(), metrics.clone()).unwrap();
    assert_eq!(server.port(), None);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let socket = path.to_str().unwrap();
    let (well, text) = curl(&["--unix-socket", socket, "http://localhost/metrics"]);
    assert!(well && parsed(&text).len() > NASTY.len(), "{text}");
    let second = Server::start(&address, Access::default(), metrics).unwrap_err();
    assert!(
        matches!(second, ServerError::Unix(_)) && second.to_string().contains(socket),
        "{second}"
    );
    // Clients that are connected do not keep it.
    let mut idle = UnixStream::connect(&path).unwrap();
    drop(server);
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let (metrics, _devices) = metrics();
    let (_server, port) = on_a_port(&metrics);
    let address: Address = port.to_string().parse().unwrap();
    let error = Server::start(&address, Access::default(), metrics).unwrap_err();
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}

fn read_all(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection does not end: {error}"),
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let (metrics, _devices) = metrics();
    let (_server, port) = on_a_port(&metrics);
    let mut stream = TcpStream::connect(port).unwrap();
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    let requests = [
        get("/metrics", ""),
        get("/other", ""),
        get("/metrics", "Connection: close\r\n"),
    ];
    stream.write_all(requests.concat().as_bytes()).unwrap();
    let text = read_all(&mut stream);
    let answers: Vec<_> = text
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &text[at + 9..at + 12])
        .collect();
    assert_eq!(answers, ["200", "404", "200"]);
}

/// Half a head, a byte at a time or not at all; more connections than there may be: whoever asks properly is
/// answered, and those end.
#[test]
fn slow_clients_keep_nobody_out_and_end() {
    let (metrics, _devices) = metrics();
    let (_server, port) = on_a_port(&metrics);
    let url = format!("http://{port}/metrics");
    let start = Instant::now();
    let mut half = TcpStream::connect(port).unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\nX: ").unwrap();
    let mut dripping = TcpStream::connect(port).unwrap();
    dripping.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let mut idle = TcpStream::connect(port).unwrap();
    let mut drips = dripping.try_clone().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let dripper = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) && drips.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
        })
    };
    assert_eq!(status_of(&[&url]), "200");
    for stream in [&mut half, &mut dripping, &mut idle] {
        read_all(stream);
    }
    assert!(
        start.elapsed() > Duration::from_secs(1),
        "they had some time"
    );
    stop.store(true, Ordering::Relaxed);
    dripper.join().unwrap();
    assert_eq!(status_of(&[&url]), "200");
}

#[test]
fn a_thousand_connections() {
    let (metrics, _devices) = metrics();
    let (server, port) = on_a_port(&metrics);
    let before = descriptors();
    let mut streams: Vec<TcpStream> = Vec::new();
    for n in 0..1000 {
        // Kept on our side in moderation: descriptors are few.
        let stream = TcpStream::connect(port).unwrap();
        if streams.len() < 200 {
            streams.push(stream);
        } else {
            let at = n % 200;
            streams[at] = stream;
        }
    }
    let url = format!("http://{port}/metrics");
    assert_eq!(status_of(&[&url]), "200");
    let until = Instant::now() + LIMIT;
    // Ours, the 16 that are served, and some of the other tests, which run in this process, too.
    while descriptors() > before + 200 + 16 + 60 {
        assert!(Instant::now() < until, "{} descriptors", descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
    for stream in &mut streams {
        read_all(stream);
    }
    assert_eq!(status_of(&[&url]), "200");
    drop(server);
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// An answer that its client does not read is cut off, and takes nothing from others.
#[test]
fn a_client_that_reads_nothing() {
    let metrics = Metrics::default();
    let family: Family<Device, Counter> = metrics
        .family("requests", "Requests", Unit::None, Counter::default)
        .unwrap();
    let label = |n: u32| vec![("device", format!("{n}{}", "x".repeat(60_000)))];
    let _many: Vec<_> = (0..60).map(|n| family.series(label(n))).collect();
    let (_server, port) = on_a_port(&metrics);
    let mut deaf = TcpStream::connect(port).unwrap();
    let start = Instant::now();
    rustix::net::sockopt::set_socket_recv_buffer_size(&deaf, 4096).unwrap();
    // More than the buffers of the kernel hold.
    let requests = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(8);
    deaf.write_all(&requests).unwrap();
    let url = format!("http://{port}/metrics");
    assert_eq!(status_of(&[&url]), "200");
    // Its end is seen in the table of connections: the server's side of it is closed, while it has read nothing.
    let local = deaf.local_addr().unwrap().port();
    assert!(is_established(port.port(), local));
    while is_established(port.port(), local) {
        assert!(start.elapsed() < LIMIT, "it is not ended");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(status_of(&[&url]), "200");
    // It had its time: the answer was under way, and was cut off.
    let lasted = start.elapsed();
    assert!(lasted > Duration::from_secs(10), "{lasted:?}");
}

/// Whether the server's side of a connection is open.
fn is_established(port: u16, peer: u16) -> bool {
    let table = std::fs::read_to_string(Path::new("/proc/net/tcp")).unwrap();
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let ends_with = |field: &str, port: u16| field.ends_with(&format!(":{port:04X}"));
        fields.len() > 3
            && ends_with(fields[1], port)
            && ends_with(fields[2], peer)
            && fields[3] == "01"
    })
}
