//! What `/metrics` answers: what was counted, and what is looked up just then.

use moshi_ctl_core::Precision;

use crate::app::{App, Module};
use crate::build_info::build_info;
use crate::logging;
use crate::metrics::catalogue::{self, Metric};
use crate::metrics::{ALL_HANDLERS, LookedUp};
use crate::process;

/// Content type and body.
pub(crate) fn render(app: &App) -> Result<(String, Vec<u8>), prometheus::Error> {
    app.metrics.render(|metrics| {
        look_at_the_server(app, metrics);
        let used: usize = app.modules.iter().map(|module| look_at_a_module(module, metrics)).sum();
        metrics.set(catalogue::ASR_OPEN_CHANNELS, ALL_HANDLERS, used as f64);
        look_at_the_process(metrics);
        look_at_the_cards(app, metrics);
    })
}

fn look_at_the_server(app: &App, metrics: &LookedUp) {
    let ready = if app.unready().is_empty() { 1.0 } else { 0.0 };
    metrics.set(catalogue::READY, &[], ready);
    metrics.set(catalogue::CONNECTIONS, &[], app.connections.open() as f64);
    for (key, open) in app.keys.sessions() {
        metrics.set(catalogue::KEY_OPEN, &[&key], open as f64);
    }
    let info = build_info();
    let built = ["version", "git_hash", "rustc_version", "cargo_target_triple"]
        .map(|fact| info[fact].as_str().unwrap_or_default());
    metrics.set(catalogue::BUILD_INFO, &built, 1.0);
    for (level, count) in logging::messages() {
        metrics.set(catalogue::LOG_MESSAGES, &[level], count as f64);
    }
    metrics.set(catalogue::LOG_LINES_DROPPED, &[], logging::dropped_lines() as f64);
}

/// Gives how many of its lanes are in use.
fn look_at_a_module(module: &Module, metrics: &LookedUp) -> usize {
    let standing = module.lanes.standing();
    let running = module.metrics().step_began().map(|began| began.elapsed()).unwrap_or_default();
    for (metric, value) in [
        (catalogue::LANES, standing.offered as f64),
        (catalogue::LANES_USED, standing.used as f64),
        (catalogue::MODEL_LOOP_ALIVE, f64::from(u8::from(standing.alive))),
        (catalogue::OVERLOADED, f64::from(u8::from(standing.overloaded))),
        (catalogue::STEP_RUNNING, running.as_secs_f64()),
        (catalogue::LAG, standing.lag.as_secs_f64()),
        (catalogue::BACKLOG, standing.backlog_s),
    ] {
        metrics.set(metric, &[&module.name], value);
    }
    let asr = module.config.asr();
    let device = asr.device.map_or_else(|| "auto".into(), |device| device.to_string());
    let precision = |precision: Option<Precision>| precision.map_or("auto", Precision::name);
    let info = [
        &module.name,
        module.config.info_type(),
        &asr.path,
        &device,
        precision(asr.precision),
        precision(asr.kv_precision),
        &standing.offered.to_string(),
    ];
    metrics.set(catalogue::MODULE_INFO, &info, 1.0);
    standing.used
}

fn look_at_the_process(metrics: &LookedUp) {
    let Some(process) = process::standing() else { return };
    for (metric, value) in [
        (catalogue::PROCESS_CPU, process.cpu_s),
        (catalogue::PROCESS_RESIDENT, process.resident_bytes as f64),
        (catalogue::PROCESS_VIRTUAL, process.virtual_bytes as f64),
        (catalogue::PROCESS_OPEN_FDS, process.open_fds as f64),
        (catalogue::PROCESS_MAX_FDS, process.max_fds.map_or(f64::INFINITY, |most| most as f64)),
        (catalogue::PROCESS_THREADS, process.threads as f64),
        (catalogue::PROCESS_START, process.started_s),
    ] {
        metrics.set(metric, &[], value);
    }
}

fn look_at_the_cards(app: &App, metrics: &LookedUp) {
    const OF_A_CARD: [Metric; 5] = [
        catalogue::GPU_MEMORY_USED,
        catalogue::GPU_MEMORY_TOTAL,
        catalogue::GPU_UTILIZATION,
        catalogue::GPU_POWER,
        catalogue::GPU_TEMPERATURE,
    ];
    for metric in OF_A_CARD {
        // A card may be gone since the last scrape.
        metrics.forget(metric);
    }
    for card in app.gpus.readings() {
        let values = [
            Some(card.memory_used_bytes as f64),
            Some(card.memory_total_bytes as f64),
            card.utilization_ratio,
            card.power_watts,
            card.temperature_celsius,
        ];
        for (metric, value) in OF_A_CARD.into_iter().zip(values) {
            if let Some(value) = value {
                metrics.set(metric, &[&card.device, &card.name, &card.uuid], value);
            }
        }
    }
}
