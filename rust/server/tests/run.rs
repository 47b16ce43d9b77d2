//! The whole life of a worker as the command line starts it: signals, log file, no key anywhere.

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use moshi_ctl_server::logging::{self, LevelFilter, LogFormat, LogOptions};
use moshi_ctl_server::worker::{build_info, run};
use support::{Client, Msg, PATH, PATIENCE, Setup, credentials, http};

const CANARY: &str = "canary-key";

#[test]
fn a_signal_ends_it_and_the_log_tells_everything_but_keys() {
    let setup = Setup::new(1);
    let log_file = setup.folder.path().join("logs/log.test");
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut options = Setup::options();
    options.port = port;
    options.credentials = credentials(&[CANARY], None);
    let (config, load) = (setup.config(), setup.load());
    let logging = logging::start(LogOptions {
        dir: setup.folder.path().join("logs"),
        instance: "test".into(),
        level: LevelFilter::TRACE,
        format: LogFormat::Text,
        silent: true,
        max_file_bytes: u64::MAX,
        max_files: 0,
        otlp_endpoint: None,
    })
    .unwrap();
    let worker = std::thread::spawn(move || run(config, options, load));

    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let start = Instant::now();
        while tokio::net::TcpStream::connect(addr).await.is_err() {
            assert!(start.elapsed() < PATIENCE && !worker.is_finished(), "it never starts");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let query = format!("{PATH}?auth_id={CANARY}");
        let header = [("kyutai-api-key", CANARY.as_bytes())];
        for path in [&query, "/metrics", "/nothing?auth_id=canary-key"] {
            http::request(addr, "GET", path, &header, b"").await;
            http::request(addr, "POST", path, &header, b"no audio").await;
        }
        let wrong = format!("{PATH}?auth_id={CANARY}-but-wrong");
        assert_eq!(http::get(addr, &wrong).await.status, 401);
        let mut client = Client::request(addr, &query, &[]).await.unwrap();
        assert_eq!(client.next().await, Some(Msg::Ready));
        let pid = std::process::id().to_string();
        assert!(
            std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success()
        );
        assert_eq!(client.error_and_close().await, (String::new(), 1001));
    });
    let start = Instant::now();
    while !worker.is_finished() {
        assert!(start.elapsed() < PATIENCE, "it never ends");
        std::thread::sleep(Duration::from_millis(10));
    }
    worker.join().unwrap().unwrap();
    drop(logging);

    let infos = logging::messages()[2];
    assert!(infos.0 == "info" && infos.1 >= 5, "{infos:?}");
    assert_eq!(logging::dropped_lines(), 0);
    let log = std::fs::read_to_string(log_file).unwrap();
    assert!(!log.contains("canary"), "{log}");
    assert!(!log.contains('\u{1b}'), "colours in a file: {log}");
    let hash = build_info()["git_hash"].as_str().unwrap().to_string();
    for expected in ["listening on", "session begins", "session over", "shutting down", &hash] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    // 2026-01-31 12:00:00.123
    let first_line = log.lines().next().unwrap();
    let shape: String =
        first_line.chars().take(23).map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00 00:00:00.000", "{first_line}");
}
