//! What `/metrics` answers: what was counted, and gauges that are looked up just then.

use moshi_ctl_core::Precision;
use prometheus::IntCounter;

use crate::app::{App, Module};
use crate::logging;
use crate::metrics::{ALL_HANDLERS, Gauges};

/// Content type and body.
pub(crate) fn render(app: &App) -> Result<(String, Vec<u8>), prometheus::Error> {
    app.metrics.render(|gauges| {
        let ready = if app.unready().is_empty() { 1.0 } else { 0.0 };
        gauges.ready.with_label_values::<&str>(&[]).set(ready);
        let used: usize = app.modules.iter().map(|module| look_at(module, gauges)).sum();
        gauges.open_channels.with_label_values(ALL_HANDLERS).set(used as f64);
        look_at_cards(app, gauges);
        look_at_the_log(gauges);
    })
}

/// Sets the gauges of a module; gives how many of its lanes are in use.
fn look_at(module: &Module, gauges: &Gauges) -> usize {
    let standing = module.lanes.standing();
    let running = module.metrics().step_running().unwrap_or_default();
    let label = &[module.name.as_str()];
    for (gauge, value) in [
        (&gauges.lanes, standing.offered as f64),
        (&gauges.lanes_used, standing.used as f64),
        (&gauges.model_loop_alive, f64::from(u8::from(standing.alive))),
        (&gauges.step_running, running.as_secs_f64()),
        (&gauges.lag, standing.lag.as_secs_f64()),
        (&gauges.backlog, standing.backlog_s),
    ] {
        gauge.with_label_values(label).set(value);
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
    gauges.module_info.with_label_values(&info).set(1.0);
    standing.used
}

fn look_at_the_log(gauges: &Gauges) {
    for (level, count) in logging::messages() {
        set(&gauges.log_messages.with_label_values(&[level]), count);
    }
    set(&gauges.log_lines_dropped.with_label_values::<&str>(&[]), logging::dropped_lines());
}

/// Makes a counter say what was counted elsewhere.
fn set(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

fn look_at_cards(app: &App, gauges: &Gauges) {
    let all = [
        &gauges.gpu_memory_used,
        &gauges.gpu_memory_total,
        &gauges.gpu_utilization,
        &gauges.gpu_power,
        &gauges.gpu_temperature,
    ];
    for gauge in all {
        // A card may be gone since the last scrape.
        gauge.reset();
    }
    for card in app.gpus.readings() {
        let values = [
            Some(card.memory_used_bytes as f64),
            Some(card.memory_total_bytes as f64),
            card.utilization_ratio,
            card.power_watts,
            card.temperature_celsius,
        ];
        for (gauge, value) in all.into_iter().zip(values) {
            if let Some(value) = value {
                gauge.with_label_values(&[&card.device, &card.name, &card.uuid]).set(value);
            }
        }
    }
}
