//! What the types of a configuration cannot express.

use std::collections::BTreeMap;

use moshi_ctl_core::{Conditioner, DELAY_CONDITIONER};

use super::error::Finding;
use super::files::{HUB_PREFIX, files_mut};
use super::{AsrModule, BatchSize, Config};
use crate::limits::MAX_LANES;
use crate::routes::BUILT_IN_PATHS;

/// More than any device has, in MiB.
const MOST_RESERVED_MB: u64 = 1 << 20;

impl Config {
    pub(super) fn check(&mut self) -> Result<(), Finding> {
        if self.instance_name.contains(['/', '\\', '\0']) {
            let message = format!("`{}` cannot be part of a file name", self.instance_name);
            return Err(Finding::new(&["instance_name"], message)
                .with_hint("leave out the slashes; it names the log file"));
        }
        if let Some(reserve_mb) = self.sizing.reserve_mb.filter(|mb| *mb > MOST_RESERVED_MB) {
            let message = format!("is {reserve_mb}, but can be at most {MOST_RESERVED_MB}");
            return Err(Finding::new(&["sizing", "reserve_mb"], message)
                .with_hint("it is MiB of a device's memory, such as 512"));
        }
        if self.limits.ping_every_s >= self.limits.silent_s {
            return Err(Finding::new(&["limits", "silent_s"], "is not above `ping_every_s`")
                .with_hint(
                    "a client that only listens is known to be there by its answers to pings",
                ));
        }
        let mut paths: BTreeMap<String, String> = BTreeMap::new();
        for (name, module) in &mut self.modules {
            let module = module.asr_mut();
            check_path(name, &module.path)?;
            if let Some(other) = paths.insert(module.path.clone(), name.clone()) {
                let message = format!("`{}` is already the path of module {other}", module.path);
                return Err(Finding::new(&["modules", name, "path"], message)
                    .with_hint("give each module a path of its own"));
            }
            check_module(name, module)?;
        }
        Ok(())
    }
}

fn check_path(name: &str, path: &str) -> Result<(), Finding> {
    let finding = |message: String| Finding::new(&["modules", name, "path"], message);
    if !path.starts_with('/') {
        return Err(finding(format!("`{path}` does not start with `/`"))
            .with_hint(format!("write `/{path}`")));
    }
    if let Some(odd) = path.chars().find(|c| !c.is_ascii_graphic() || "{}*?#%\\\"<>".contains(*c)) {
        return Err(finding(format!("`{path}` holds {odd:?}, which a path cannot"))
            .with_hint("use letters, digits, `-`, `_`, `.` and `/`"));
    }
    if BUILT_IN_PATHS.contains(&path) {
        return Err(finding(format!("`{path}` belongs to the server itself"))
            .with_hint("use another path, such as /api/asr-streaming"));
    }
    Ok(())
}

fn check_module(name: &str, module: &mut AsrModule) -> Result<(), Finding> {
    let finding = |key: &str, message: String| Finding::new(&["modules", name, key], message);
    if module.batch_size == BatchSize::Lanes(0) {
        return Err(finding("batch_size", "is 0, but a model needs at least one lane".into())
            .with_hint("set it to how many streams are to be served at the same time"));
    }
    if let BatchSize::Lanes(lanes) = module.batch_size
        && lanes > MAX_LANES
    {
        let message = format!("is {lanes}, but can be at most {MAX_LANES}");
        return Err(finding("batch_size", message)
            .with_hint("set it to how many streams the machine can serve at the same time"));
    }
    if !(module.temperature >= 0.0 && module.temperature.is_finite()) {
        let message = format!("is {}, but must be 0 or above", module.temperature);
        return Err(finding("temperature", message).with_hint("0 always takes the likeliest token"));
    }
    match (module.precision, module.dtype_override) {
        (Some(precision), Some(other)) if precision != other => {
            let message = format!("is {precision}, but `dtype_override` is {other}");
            return Err(finding("precision", message)
                .with_hint("remove `dtype_override`, Kyutai's name for the same thing"));
        }
        (precision, other) => module.precision = precision.or(other),
    }
    if module.log_frequency_s.is_some_and(|s| !(s > 0.0 && s.is_finite())) {
        return Err(finding("log_frequency_s", "must be a positive number of seconds".into()));
    }
    for (key, value) in files_mut(module) {
        check_file_string(value).map_err(|message| {
            finding(key, message).with_hint("write a path or hf://org/repository/file")
        })?;
    }
    module
        .model
        .check()
        .map_err(|error| Finding::new(&["modules", name, "model", error.key], error.message))?;
    check_conditioning(name, module)
}

fn check_file_string(value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err("is empty".into());
    }
    if let Some(hub) = value.strip_prefix(HUB_PREFIX) {
        let parts: Vec<&str> = hub.split('/').collect();
        if parts.len() < 3 || parts.iter().any(|part| part.is_empty() || *part == "..") {
            return Err(format!("`{value}` does not name a repository and a file in it"));
        }
    }
    Ok(())
}

fn check_conditioning(name: &str, module: &AsrModule) -> Result<(), Finding> {
    // Published configurations without conditioners set conditioning_learnt_padding all the same.
    let Some(conditioners) = &module.model.conditioners else { return Ok(()) };
    let finding = |key: &str, message: String| Finding::new(&["modules", name, key], message);
    let Some(delay) = conditioners.get(DELAY_CONDITIONER) else {
        return Err(finding("model.conditioners", "holds no conditioner `delay`".into())
            .with_hint("name it `delay`; it is the only one speech to text uses"));
    };
    match (module.conditioning_delay, module.conditioning_learnt_padding) {
        (Some(_), true) => Err(finding(
            "conditioning_delay",
            "is given together with conditioning_learnt_padding = true".into(),
        )
        .with_hint("keep one of the two")),
        (None, false) => {
            Err(finding("conditioning_delay", "is missing, and this model has conditioners".into())
                .with_hint("add it, in seconds, or `conditioning_learnt_padding = true`"))
        }
        (Some(delay_s), false) if !(delay_s >= 0.0 && delay_s.is_finite()) => {
            Err(finding("conditioning_delay", format!("is {delay_s}, but must be 0 or above")))
        }
        (Some(_), false) if !matches!(delay, Conditioner::ContinuousAttribute(_)) => Err(finding(
            "conditioning_delay",
            "needs a conditioner `delay` of type ContinuousAttribute".into(),
        )
        .with_hint("use `conditioning_learnt_padding = true` instead")),
        _ => Ok(()),
    }
}
