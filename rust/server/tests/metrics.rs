//! What `/metrics` says is what happened.
#![allow(clippy::unwrap_used, reason = "a test's helper may panic as a test does")]

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use moshi_ctl_core::units::{TEXT_TOKEN_END_OF_PADDING, TEXT_TOKEN_PADDING};
use moshi_ctl_server::worker::Worker;
use moshi_ctl_server::{GpuReading, metrics_table};
use support::model::{ERROR, NO_NUMBERS, frame, frames};
use support::{Client, DELAY, KEY, Msg, PATH, PATIENCE, Setup, http, wav};

const PAD: u32 = TEXT_TOKEN_PADDING;
const END: u32 = TEXT_TOKEN_END_OF_PADDING;

/// One scrape: values by series, as they are written, and kinds by name.
struct Scrape {
    values: BTreeMap<String, f64>,
    kinds: BTreeMap<String, String>,
}

impl Scrape {
    async fn of(addr: SocketAddr) -> Self {
        let answer = http::get(addr, "/metrics").await;
        assert_eq!(answer.status, 200);
        let (mut values, mut kinds) = (BTreeMap::new(), BTreeMap::new());
        for line in answer.text().lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                kinds.insert(name.to_string(), kind.to_string());
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                values.insert(series.to_string(), value.parse().unwrap());
            }
        }
        Self { values, kinds }
    }

    /// The value of a series, such as `moshi_ready` or `moshi_lanes{module="asr"}`.
    fn get(&self, series: &str) -> f64 {
        *self.values.get(series).unwrap_or_else(|| panic!("{series}: {:#?}", self.values))
    }

    /// The value of a module's series that has no other label.
    fn asr(&self, name: &str) -> f64 {
        self.get(&format!("{name}{{module=\"asr\"}}"))
    }

    fn refused(&self, reason: &str) -> f64 {
        self.get(&format!("moshi_refusals_total{{module=\"asr\",reason=\"{reason}\"}}"))
    }

    fn ended(&self, kind: &str, end: &str) -> f64 {
        let labels = format!("{{end=\"{end}\",kind=\"{kind}\",module=\"asr\"}}");
        self.get(&format!("moshi_sessions_ended_total{labels}"))
    }

    /// All series of a name, summed.
    fn sum(&self, name: &str) -> f64 {
        let of = format!("{name}{{");
        self.values.iter().filter(|(series, _)| series.starts_with(&of)).map(|(_, v)| v).sum()
    }
}

/// Scrapes until `true_now`.
async fn eventually(addr: SocketAddr, true_now: impl Fn(&Scrape) -> bool) -> Scrape {
    let start = Instant::now();
    loop {
        let scrape = Scrape::of(addr).await;
        if true_now(&scrape) {
            return scrape;
        }
        assert!(start.elapsed() < PATIENCE, "it never becomes true: {:#?}", scrape.values);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_offered_is_what_is_documented() {
    let server = Setup::new(2).start().await;
    let scrape = Scrape::of(server.local_addr()).await;
    let table = metrics_table();
    let documented: BTreeMap<&str, &str> = table
        .as_array()
        .unwrap()
        .iter()
        .map(|metric| (metric["name"].as_str().unwrap(), metric["kind"].as_str().unwrap()))
        .collect();
    for (name, kind) in &scrape.kinds {
        assert_eq!(documented.get(name.as_str()), Some(&kind.as_str()), "{name}");
    }
    for name in documented.keys() {
        let comes_and_goes = name.starts_with("moshi_gpu_")
            || (name.starts_with("process_") && cfg!(not(target_os = "linux")));
        assert_eq!(scrape.kinds.contains_key(*name), !comes_and_goes, "{name}");
    }
    // What is counted starts at 0, so that the first event is an increase.
    for name in ["moshi_refusals_total", "moshi_sessions_total", "moshi_sessions_ended_total"] {
        assert_eq!(scrape.sum(name), 0.0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_count_what_their_clients_count() {
    let setup = Setup::new(3).model(|model| model.vad_heads = 1);
    let server = setup.start().await;
    let addr = server.local_addr();
    let mut words = 0;
    let mut clients = Vec::new();
    // Tokens count from the end of the delay.
    let spoken = [&[PAD, PAD, END, 7, PAD, END, 8, PAD][..], &[PAD; 4], &[PAD, PAD, END, 9, PAD]];
    for tokens in spoken {
        let mut client = Client::ready(addr).await;
        client.audio(&frames(tokens)).await;
        client.marker(1).await;
        client.audio(&frames(&[PAD; DELAY])).await;
        let heard = client.until_marker(1).await;
        words += heard.iter().filter(|message| matches!(message, Msg::Word { .. })).count();
        clients.push(client);
    }
    assert_eq!(words, 3);
    let busy = Scrape::of(addr).await;
    let of_streams = (8 + 4 + 5 + 3 * DELAY) as f64;
    assert_eq!(busy.asr("moshi_frames_total"), of_streams);
    assert_eq!(busy.asr("moshi_lanes"), 3.0);
    assert_eq!(busy.asr("moshi_lanes_used"), 3.0);
    assert_eq!(busy.get("asr_open_channels{handler=\"all\"}"), 3.0);
    let info = "device=\"auto\",kv_precision=\"auto\",lanes=\"3\",module=\"asr\"";
    let series = format!(
        "moshi_module_info{{{info},path=\"{PATH}\",precision=\"auto\",type=\"batched_asr\"}}"
    );
    assert_eq!(busy.get(&series), 1.0);
    for mut client in clients {
        client.0.close(None).await.unwrap();
    }
    let body = wav::mono(24_000, &frames(&[PAD, PAD, END, 7, PAD]));
    let answer = http::post(addr, PATH, KEY, &body).await;
    assert_eq!(answer.status, 200);
    words += answer.json().as_array().unwrap().iter().filter(|m| m["type"] == "Word").count();

    let idle = eventually(addr, |scrape| scrape.asr("moshi_lanes_used") == 0.0).await;
    assert_eq!(idle.asr("moshi_words_total"), words as f64);
    // A file is followed by silence for the delay and a frame that may come too late.
    let of_the_file = (5 + DELAY) as f64;
    let frames = idle.asr("moshi_frames_total");
    assert!([of_the_file, of_the_file + 1.0].contains(&(frames - of_streams)), "{frames}");
    assert!(idle.get("asr_connection_num_steps_sum") <= frames);
    assert!(idle.get("asr_connection_num_steps_sum") >= of_streams + of_the_file);
    let steps = idle.asr("moshi_step_duration_seconds_count");
    assert_eq!(steps, idle.get("asr_model_step_duration_count"));
    assert!((8.0 + DELAY as f64..=frames).contains(&steps), "{steps}");
    assert_eq!(idle.get("moshi_sessions_total{kind=\"stream\",module=\"asr\"}"), 3.0);
    assert_eq!(idle.get("moshi_sessions_total{kind=\"file\",module=\"asr\"}"), 1.0);
    assert_eq!(idle.get("asr_connect{handler=\"all\"}"), 3.0);
    assert_eq!(idle.ended("stream", "completed"), 3.0);
    assert_eq!(idle.ended("file", "completed"), 1.0);
    assert_eq!(idle.sum("moshi_sessions_ended_total"), 4.0);
    assert_eq!(idle.sum("moshi_refusals_total"), 0.0);
    for name in ["moshi_lag_seconds", "moshi_backlog_seconds", "moshi_step_running_seconds"] {
        assert_eq!(idle.asr(name), 0.0, "{name}");
    }
    assert_eq!(idle.asr("moshi_model_loop_alive"), 1.0);
    assert_eq!(idle.get("moshi_ready"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_those_of_messages_and_bodies() {
    let server = Setup::new(1).start().await;
    let addr = server.local_addr();
    let mut client = Client::ready(addr).await;
    let before = Scrape::of(addr).await;
    // {"type": "Marker", "id": 5} both ways, before any audio: due at once when the delay is over.
    let marker = b"\x82\xa4type\xa6Marker\xa2id\x05".to_vec();
    let length = marker.len() as f64;
    client.send(marker).await;
    client.audio(&frames(&[PAD; DELAY])).await;
    client.until_marker(5).await;
    let after = eventually(addr, |scrape| {
        scrape.asr("moshi_sent_bytes_total") >= before.asr("moshi_sent_bytes_total") + length
    })
    .await;
    let sent = after.asr("moshi_sent_bytes_total") - before.asr("moshi_sent_bytes_total");
    let received =
        after.asr("moshi_received_bytes_total") - before.asr("moshi_received_bytes_total");
    assert_eq!(sent, length);
    // Floats take five bytes each; the rest is the map around them.
    let audio = (DELAY * 1920 * 5) as f64;
    assert!((audio..audio + 40.0).contains(&(received - length)), "{received}");
    client.0.close(None).await.unwrap();
    eventually(addr, |scrape| scrape.asr("moshi_lanes_used") == 0.0).await;

    let body = wav::mono(24_000, &frame(PAD));
    let before = Scrape::of(addr).await;
    let answer = http::post(addr, PATH, KEY, &body).await;
    let after = Scrape::of(addr).await;
    let grown = |name: &str| after.asr(name) - before.asr(name);
    assert_eq!(grown("moshi_received_bytes_total"), body.len() as f64);
    assert_eq!(grown("moshi_sent_bytes_total"), answer.body.len() as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_reason() {
    let server = Setup::new(1).start().await;
    let addr = server.local_addr();
    assert_eq!(http::get(addr, PATH).await.status, 401);
    assert_eq!(http::post(addr, PATH, "wrong", b"audio").await.status, 401);
    let key = [("kyutai-api-key", KEY.as_bytes())];
    assert!(http::request(addr, "GET", PATH, &key, b"").await.status >= 400);
    for no_audio in [&b""[..], b"no audio file at all, but some text that goes on for a while"] {
        assert!(http::post(addr, PATH, KEY, no_audio).await.status >= 400);
    }
    let _only_lane = Client::ready(addr).await;
    for _ in 0..3 {
        let mut refused = Client::connect(addr).await;
        assert_eq!(refused.error_and_close().await.1, 1013);
    }
    let wav = wav::mono(24_000, &frame(PAD));
    assert_eq!(http::post(addr, PATH, KEY, &wav).await.status, 503);
    let scrape = Scrape::of(addr).await;
    assert_eq!(scrape.refused("unauthorized"), 2.0);
    assert_eq!(scrape.refused("bad_request"), 1.0);
    assert_eq!(scrape.refused("bad_audio"), 2.0);
    assert_eq!(scrape.refused("full"), 4.0);
    assert_eq!(scrape.sum("moshi_refusals_total"), 9.0);
    assert_eq!(scrape.sum("moshi_sessions_total"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_has_its_cause() {
    let server = Setup::new(1).start().await;
    let addr = server.local_addr();
    let over = async |kind: &'static str, end: &'static str| {
        let scrape = eventually(addr, |scrape| scrape.ended(kind, end) == 1.0).await;
        assert_eq!(scrape.sum("moshi_sessions_ended_total"), scrape.sum("moshi_sessions_total"));
    };
    drop(Client::ready(addr).await);
    over("stream", "lost").await;

    let mut client = Client::ready(addr).await;
    client.send(b"\xc1".to_vec()).await;
    assert_eq!(client.error_and_close().await.1, 1007);
    over("stream", "invalid").await;

    let mut client = Client::ready(addr).await;
    client.audio(&[f32::NAN; 1920]).await;
    assert_eq!(client.error_and_close().await.1, 1007);
    over("stream", "bad_audio").await;
    let answer = http::post(addr, PATH, KEY, &wav::mono_f32(24_000, &[f32::NAN; 1920])).await;
    assert_eq!(answer.status, 400);
    over("file", "bad_audio").await;

    let mut client = Client::ready(addr).await;
    client.audio(&frame(NO_NUMBERS)).await;
    assert_eq!(client.error_and_close().await.1, 1011);
    over("stream", "bad_output").await;

    let mut client = Client::ready(addr).await;
    client.0.close(None).await.unwrap();
    over("stream", "completed").await;

    let mut client = Client::ready(addr).await;
    client.audio(&frame(ERROR)).await;
    assert_eq!(client.error_and_close().await.1, 1011);
    // The failed server answers for a moment longer.
    let last = Scrape::of(addr).await;
    assert_eq!(last.ended("stream", "model_failed"), 1.0);
    assert_eq!(last.asr("moshi_model_loop_alive"), 0.0);
    assert_eq!(last.get("moshi_ready"), 0.0);
    assert_eq!(last.asr("moshi_step_running_seconds"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_too_slow_shows() {
    let slow = Duration::from_millis(100);
    let server = Setup::new(1).model(|model| model.step_takes = slow).start().await;
    let addr = server.local_addr();
    let mut client = Client::ready(addr).await;
    client.audio(&frames(&[PAD; 4])).await;
    let scrape = eventually(addr, |s| s.asr("moshi_frames_total") == 4.0).await;
    assert_eq!(scrape.asr("moshi_deadline_misses_total"), 4.0);
    let bucket = |bound: &str| {
        scrape.get(&format!("moshi_step_duration_seconds_bucket{{module=\"asr\",le=\"{bound}\"}}"))
    };
    assert_eq!((bucket("0.09"), bucket("+Inf")), (0.0, 4.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_what_should_be_processed_and_backlog_what_is_there() {
    let setup = Setup::new(1);
    let gate = Arc::clone(&setup.model.gate);
    let server = setup.start().await;
    let addr = server.local_addr();
    let mut client = Client::ready(addr).await;
    gate.close();
    let sent = Instant::now();
    client.audio(&frames(&[PAD; 100])).await;
    // One frame is in the step that hangs.
    let waiting = eventually(addr, |s| (s.asr("moshi_backlog_seconds") - 7.92).abs() < 1e-9).await;
    assert!(waiting.asr("moshi_lag_seconds") <= sent.elapsed().as_secs_f64());
    let late = eventually(addr, |s| s.asr("moshi_lag_seconds") >= 0.4).await;
    assert!(late.asr("moshi_lag_seconds") <= sent.elapsed().as_secs_f64());
    assert!(late.asr("moshi_step_running_seconds") >= 0.4);
    gate.open();
    let done = eventually(addr, |s| s.asr("moshi_backlog_seconds") == 0.0).await;
    // Sent all at once, it is processed before it could have been spoken.
    assert_eq!(done.asr("moshi_lag_seconds"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latency_of_words_is_that_of_live_audio() {
    let server = Setup::new(2).start().await;
    let addr = server.local_addr();
    let latencies = "moshi_word_latency_seconds_count";
    let mut file = Client::ready(addr).await;
    let mut tokens = vec![PAD; 20];
    tokens.extend([END, 7, PAD]);
    file.audio(&frames(&tokens)).await;
    eventually(addr, |scrape| scrape.asr("moshi_words_total") == 1.0).await;
    assert_eq!(Scrape::of(addr).await.asr(latencies), 0.0);

    let mut live = Client::ready(addr).await;
    let mut beat = tokio::time::interval(Duration::from_millis(80));
    for token in [PAD, PAD, PAD, END, 7, PAD] {
        beat.tick().await;
        live.audio(&frame(token)).await;
    }
    let scrape = eventually(addr, |scrape| scrape.asr("moshi_words_total") == 2.0).await;
    assert_eq!(scrape.asr(latencies), 1.0);
    // The word begins with the second frame and is said with the sixth, 0.32 s later; either may
    // be delivered late.
    let latency = scrape.asr("moshi_word_latency_seconds_sum");
    assert!((0.16..2.0).contains(&latency), "{latency}");
}

#[tokio::test(flavor = "multi_thread")]
async fn warm_ups_are_counted_and_can_be_switched_off() {
    let setup = Setup::new(1);
    let server = setup.start().await;
    let warm = Scrape::of(server.local_addr()).await;
    assert_eq!(warm.asr("warmup_success_total"), 1.0);
    assert_eq!(warm.asr("warmup_duration_seconds_count"), 1.0);
    assert_eq!(warm.asr("warmup_skipped_total"), 0.0);
    assert_eq!(warm.asr("warmup_failure_total"), 0.0);
    assert!(setup.model.steps.load(Ordering::SeqCst) > 0);
    // Silence to warm up with is nobody's audio.
    assert_eq!(warm.asr("moshi_frames_total"), 0.0);

    let cold = Setup::new(1);
    let mut config = cold.config();
    config.warmup.enabled = false;
    let server = Worker::start(config, Setup::options(), cold.load()).await.unwrap();
    let addr = server.local_addr();
    assert_eq!(http::get(addr, "/health/ready").await.status, 200);
    let scrape = Scrape::of(addr).await;
    assert_eq!(scrape.asr("warmup_success_total"), 0.0);
    assert_eq!(scrape.asr("warmup_duration_seconds_count"), 0.0);
    assert_eq!(scrape.asr("warmup_skipped_total"), 1.0);
    assert_eq!(cold.model.steps.load(Ordering::SeqCst), 0);
}

fn reading(used: u64) -> GpuReading {
    GpuReading {
        device: "cuda:0".into(),
        name: "A card".into(),
        uuid: "GPU-1".into(),
        memory_used_bytes: used,
        memory_total_bytes: 100,
        utilization_ratio: Some(0.25),
        power_watts: None,
        temperature_celsius: Some(47.0),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_show_while_there_are_any() {
    let setup = Setup::new(1);
    let mut options = Setup::options();
    let asked = Arc::new(AtomicUsize::new(0));
    let read = Arc::clone(&asked);
    options.read_gpus = Some(Box::new(move || {
        read.fetch_add(1, Ordering::SeqCst);
        vec![reading(60)]
    }));
    let server = Worker::start(setup.config(), options, setup.load()).await.unwrap();
    let addr = server.local_addr();
    let labels = "{device=\"cuda:0\",name=\"A card\",uuid=\"GPU-1\"}";
    let used = format!("moshi_gpu_memory_used_bytes{labels}");
    let scrape = eventually(addr, |scrape| scrape.values.contains_key(&used)).await;
    assert_eq!(scrape.get(&used), 60.0);
    assert_eq!(scrape.get(&format!("moshi_gpu_memory_total_bytes{labels}")), 100.0);
    assert_eq!(scrape.get(&format!("moshi_gpu_utilization_ratio{labels}")), 0.25);
    assert_eq!(scrape.get(&format!("moshi_gpu_temperature_celsius{labels}")), 47.0);
    assert!(!scrape.kinds.contains_key("moshi_gpu_power_watts"));
    // However often somebody scrapes, the driver is asked once in a while.
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    server.shutdown();
    server.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_hangs_holds_up_nobody() {
    let setup = Setup::new(1);
    let mut options = Setup::options();
    let (hangs, until) = std::sync::mpsc::channel::<()>();
    let until = Mutex::new(until);
    let ended = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&ended);
    options.read_gpus = Some(Box::new(move || {
        let _ = until.lock().unwrap().recv();
        over.store(true, Ordering::SeqCst);
        Vec::new()
    }));
    let server = Worker::start(setup.config(), options, setup.load()).await.unwrap();
    let scrape = Scrape::of(server.local_addr()).await;
    assert!(!scrape.kinds.keys().any(|name| name.starts_with("moshi_gpu_")));
    server.shutdown();
    tokio::time::timeout(PATIENCE, server.wait()).await.unwrap().unwrap();
    assert!(!ended.load(Ordering::SeqCst));
    drop(hangs);
}
