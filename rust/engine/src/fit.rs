//! Making a model fit the machine: fewer lanes where memory or time do not allow more.

use moshi_ctl_core::{ModelError, StreamingModel};

use crate::measure::{RealTimeLanes, lanes_in_real_time};
use crate::{AsrModel, AsrSpec, EngineError};

/// Loads a model; where there is no memory for its lanes, with half of them, and so on.
///
/// # Errors
/// When there is no memory for a single lane, and as [`AsrModel::load`].
pub fn load_what_fits(mut spec: AsrSpec) -> Result<AsrModel, EngineError> {
    loop {
        match AsrModel::load(&spec) {
            Err(error) if error.is_out_of_memory() && spec.lanes > 1 => {
                let lanes = spec.lanes / 2;
                tracing::warn!("{error} with {} lanes: trying again with {lanes}", spec.lanes);
                spec.lanes = lanes;
            }
            Err(error) if error.is_out_of_memory() => {
                return Err(error.with_hint(
                    "Not even one lane fits. End other programs that hold memory, or choose a \
                     smaller precision (--precision q8); `moshi-ctl plan` shows what is needed.",
                ));
            }
            done => return done,
        }
    }
}

/// Gives up the lanes of a model on the CPU that cannot be kept in real time when `models` such
/// models share the machine. One lane always stays: it can transcribe files.
///
/// # Errors
/// When the model fails.
pub fn keep_real_time_lanes(model: &mut AsrModel, models: usize) -> Result<(), ModelError> {
    let wanted = model.lanes();
    let measured = lanes_in_real_time(model, wanted, models)?;
    model.keep_lanes(measured.lanes.max(1));
    for lane in 0..model.lanes() {
        model.reset(lane, 0)?;
    }
    report(wanted, &measured);
    Ok(())
}

fn report(wanted: usize, measured: &RealTimeLanes) {
    let RealTimeLanes { lanes, limit, .. } = *measured;
    let ms = |lanes| measured.step(lanes).unwrap_or_default().as_secs_f64() * 1e3;
    let limit = limit.as_secs_f64() * 1e3;
    if lanes == wanted {
        tracing::info!(
            "{lanes} lanes are kept in real time: a step of all takes {:.1} ms, {limit:.0} may",
            ms(lanes)
        );
        return;
    }
    let beyond = measured.tried.iter().map(|(tried, _)| *tried).filter(|tried| *tried > lanes);
    let beyond = beyond.min().unwrap_or(lanes + 1);
    if lanes == 0 {
        tracing::error!(
            "this machine keeps no stream in real time: a step of {beyond} takes {:.1} ms, \
             {limit:.0} may. One lane is offered, for files; live streams fall behind",
            ms(beyond)
        );
    } else {
        tracing::warn!(
            "{lanes} of {wanted} lanes are offered: a step of {lanes} takes {:.1} ms, one of \
             {beyond} {:.1} ms, and {limit:.0} may",
            ms(lanes),
            ms(beyond)
        );
    }
}
