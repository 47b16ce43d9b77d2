//! Starts, ends and failures of a server, and what it says about itself.
#![allow(clippy::unwrap_used, reason = "a test's helper may panic as a test does")]

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::time::Duration;

use moshi_ctl_core::ModelError;
use moshi_ctl_core::units::TEXT_TOKEN_PADDING;
use moshi_ctl_server::worker::{RunningWorker, Worker, WorkerError, WorkerOptions, build_info};
use support::model::{ERROR, PANIC, frame};
use support::{Client, KEY, Msg, PATH, PATIENCE, Setup, credentials, http, wav};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PAD: u32 = TEXT_TOKEN_PADDING;

async fn end_of(server: RunningWorker) -> Result<(), WorkerError> {
    timeout(Duration::from_secs(5), server.wait()).await.expect("the server does not end")
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_say_what_dashboards_expect() {
    let setup = Setup::new(3);
    let server = setup.start().await;
    let addr = server.local_addr();
    let info = http::get(addr, "/api/build_info").await;
    assert_eq!((info.status, info.json()), (200, build_info()));
    for field in [
        "build_timestamp",
        "build_date",
        "git_branch",
        "git_timestamp",
        "git_date",
        "git_hash",
        "git_describe",
        "rustc_host_triple",
        "rustc_version",
        "cargo_target_triple",
        "version",
    ] {
        assert!(info.json()[field].is_string(), "{field}");
    }
    let mut client = Client::ready(addr).await;
    assert_eq!(
        http::get(addr, "/api/modules_info").await.json(),
        serde_json::json!([{
            "type": "batched_asr",
            "path": PATH,
            "lm": "lm",
            "audio_tokenizer": "mimi",
            "used_slots": "1",
            "total_slots": "3",
        }])
    );
    client.audio(&frame(PAD)).await;
    client.marker(1).await;
    client.audio(&vec![0.0; 1920 * support::DELAY]).await;
    client.until_marker(1).await;
    let metrics = http::get(addr, "/metrics").await;
    assert!(metrics.headers.contains("text/plain"));
    for line in [
        "asr_connect{handler=\"all\"} 1",
        "asr_open_channels{handler=\"all\"} 1",
        "asr_model_step_duration_bucket{le=\"0.08\"}",
        "asr_model_step_duration_count",
        "asr_connection_num_steps_bucket{le=\"4500\"}",
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(http::get(addr, path).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn static_files_come_from_their_folder_only() {
    let setup = Setup::new(1);
    let server = setup.start().await;
    let addr = server.local_addr();
    let folder = setup.folder.path().join("static");
    std::fs::write(folder.join("index.html"), "hello").unwrap();
    std::fs::write(setup.folder.path().join("secret"), "secret").unwrap();
    for path in ["/", "/index.html"] {
        assert_eq!(http::get(addr, path).await.text(), "hello");
    }
    for path in ["/../secret", "/%2e%2e/secret", "/..%2fsecret", "//secret", "/none"] {
        let answer = http::get(addr, path).await;
        assert!(answer.status >= 400 && !answer.text().contains("secret"), "{path}: {answer:?}");
    }
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!(http::get(addr, "/index.html").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_closes_sessions_and_lets_nobody_in() {
    let server = Setup::new(2).start().await;
    let addr = server.local_addr();
    let mut client = Client::ready(addr).await;
    client.audio(&frame(PAD)).await;
    server.shutdown();
    assert_eq!(client.error_and_close().await, (String::new(), 1001));
    end_of(server).await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_model_ends_everything_and_everybody_is_told() {
    for (token, says) in [(PANIC, "told to panic"), (ERROR, "told to fail")] {
        let server = Setup::new(3).start().await;
        let addr = server.local_addr();
        let mut cause = Client::ready(addr).await;
        let mut bystander = Client::ready(addr).await;
        bystander.audio(&frame(PAD)).await;
        cause.audio(&frame(token)).await;
        for client in [&mut bystander, &mut cause] {
            let (error, code) = client.error_and_close().await;
            assert!(error.contains("the model failed"), "{error}");
            assert_eq!(code, 1011);
        }
        for path in ["/api/build_info", "/health/ready", "/health/live"] {
            let answer = http::get(addr, path).await;
            assert_eq!(answer.status, 503, "{path}");
            assert!(answer.text().contains(says), "{}", answer.text());
        }
        let answer = http::post(addr, PATH, KEY, &wav::mono(24_000, &frame(PAD))).await;
        assert_eq!(answer.status, 503);
        let error = end_of(server).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.to_string().starts_with("module asr: "), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_opens_only_when_the_model_is_warm() {
    let mut setup = Setup::new(1);
    let port = free_port();
    setup.model.gate.close();
    let gate = setup.model.gate.clone();
    let mut options = Setup::options();
    options.port = port;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let start = tokio::spawn(Worker::start(setup.config(), options, setup.load()));
    // The model waits in its first step of warm-up; meanwhile the port is claimed, but closed.
    let mut again = Setup::options();
    again.port = port;
    for _ in 0..20 {
        assert!(TcpStream::connect(addr).await.is_err(), "open before it is warm");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gate.open();
    let server = timeout(PATIENCE, start).await.unwrap().unwrap().unwrap();
    assert_eq!(setup.model.steps.load(Ordering::SeqCst), 2);
    Client::ready(addr).await;
    // Now somebody else has it.
    setup = Setup::new(1);
    let error = Worker::start(setup.config(), again, setup.load()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("port {port}")), "{error}");
    assert!(error.hint().unwrap().contains("--port"));
    assert_eq!(setup.model.steps.load(Ordering::SeqCst), 0, "loaded for nothing");
    server.shutdown();
    end_of(server).await.unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_says_why() {
    let broken = Setup::new(1);
    broken.model.broken.store(true, Ordering::SeqCst);
    let error = broken.try_start().await.unwrap_err().to_string();
    assert_eq!(error, "module asr: warm-up failed: out of memory");

    let no_file = Setup::new(1);
    let load = Box::new(|_: &str, _: &_| {
        Err(ModelError::new("lm: no such tensor").with_hint("take another file"))
    });
    let error = Worker::start(no_file.config(), Setup::options(), load).await.unwrap_err();
    assert_eq!(error.to_string(), "module asr: lm: no such tensor");
    assert_eq!(error.hint(), Some("take another file"));

    let no_tokenizer = Setup::new(1);
    let config = no_tokenizer.config();
    std::fs::remove_file(no_tokenizer.folder.path().join("text.model")).unwrap();
    let error = Worker::start(config, Setup::options(), no_tokenizer.load()).await.unwrap_err();
    assert!(error.to_string().contains("text.model` cannot be read"), "{error}");

    let no_lanes = Setup::new(1).model(|model| *model = support::model::FakeModel::new(0));
    let error = no_lanes.try_start().await.unwrap_err().to_string();
    assert!(error.contains("the model has no lanes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lanes_that_are_offered_are_those_of_the_model() {
    let setup = Setup::new(8).model(|model| *model = support::model::FakeModel::new(1));
    let worker = setup.start().await;
    let addr = worker.local_addr();
    let info = http::get(addr, "/api/modules_info").await.json();
    assert_eq!(info[0]["total_slots"], "1");
    let _first = Client::connect(addr).await;
    let mut second = Client::connect(addr).await;
    assert_eq!(second.next().await, Some(Msg::Error { message: "no free channels".into() }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_settles_for_fewer_lanes_when_it_is_warm_and_only_then() {
    for (warmup, lanes) in [(true, "2"), (false, "4")] {
        let setup = Setup::new(4).model(|model| model.settles_for = Some(2));
        let mut config = setup.config();
        config.warmup.enabled = warmup;
        let worker = Worker::start(config, Setup::options(), setup.load()).await.unwrap();
        let info = http::get(worker.local_addr(), "/api/modules_info").await.json();
        assert_eq!(info[0]["total_slots"], lanes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_only_this_machine_is_served() {
    let setup = Setup::new(1);
    let config = setup.config();
    let without = |addr: Ipv4Addr, jwt_secret: Option<&str>| WorkerOptions {
        addr: addr.into(),
        credentials: credentials(&[], jwt_secret),
        ..Setup::options()
    };
    let options = without(Ipv4Addr::UNSPECIFIED, None);
    let error = Worker::start(config.clone(), options, setup.load()).await.unwrap_err();
    assert!(error.to_string().contains("no API key"), "{error}");
    assert!(error.hint().unwrap().contains("MOSHI_API_KEY"));

    let server = Worker::start(config.clone(), without(Ipv4Addr::LOCALHOST, None), setup.load())
        .await
        .unwrap();
    let mut client = Client::request(server.local_addr(), PATH, &[]).await.unwrap();
    assert_eq!(client.next().await, Some(Msg::Ready));

    // A secret of tokens counts as a key, a blank one does not.
    let everywhere = |secret| without(Ipv4Addr::UNSPECIFIED, Some(secret));
    for blank in ["", " \n"] {
        let started = Worker::start(config.clone(), everywhere(blank), setup.load()).await;
        assert!(started.unwrap_err().to_string().contains("no API key"));
    }
    let server = Worker::start(config, everywhere("a secret"), setup.load()).await.unwrap();
    let addr = (Ipv4Addr::LOCALHOST, server.local_addr().port()).into();
    assert!(Client::request(addr, PATH, &[]).await.is_err());
}
