//! Measures how far the engine's precisions are from the published crate in f32, on one text.
//!
//!     moshi-ctl-accuracy SHAPE FOLDER [FRAMES [MATRICES:RINGS...]]
//!
//! FOLDER has `lm.safetensors` and `codec.safetensors`.

use std::path::Path;

use moshi_ctl_core::Precision;
use moshi_ctl_engine::{AsrModel, AsrSpec};
use moshi_ctl_reference::audio::long_audio;
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::forced::{self, Deviation};
use moshi_ctl_reference::{Result, shapes};

/// Precisions of the matrices and of the rings.
const USUAL: [&str; 5] = ["f32:f32", "bf16:bf16", "q8:f32", "q8:f16", "q8:q8"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shape, folder, rest @ ..] = arguments.as_slice() else {
        return Err("usage: moshi-ctl-accuracy SHAPE FOLDER [FRAMES [MATRICES:RINGS...]]".into());
    };
    let files = Checkpoints::at(Path::new(folder), shapes::named(shape)?);
    let frames = rest.first().map_or(Ok(500), |frames| frames.parse())?;
    let mut names: Vec<&str> = rest.iter().skip(1).map(String::as_str).collect();
    if names.is_empty() {
        names = USUAL.to_vec();
    }
    let load = |name: &&str| {
        let (matrices, rings) = name.split_once(':').ok_or("expected MATRICES:RINGS")?;
        let named = |name| Precision::ALL.into_iter().find(|precision| precision.name() == name);
        let (precision, kv_precision) = (named(matrices), named(rings));
        Ok(AsrModel::load(&AsrSpec { precision, kv_precision, ..files.spec(1) })?)
    };
    let mut models = names.iter().map(load).collect::<Result<Vec<_>>>()?;
    let (certainty, deviations) = forced::compare(&files, &long_audio(frames)?, &mut models)?;
    println!(
        "likeliest token: median probability {:.3}; entropy: median {:.2} nats",
        forced::median(&certainty.top),
        forced::median(&certainty.entropy),
    );
    for (name, deviation) in names.into_iter().zip(deviations) {
        let Deviation { frames, codes, other_codes, .. } = deviation;
        println!(
            "{name}: {frames} frames, cosine least {:.6} median {:.6}, other codes \
             {other_codes} of {codes}, VAD off by {:.5} (noise {:.5}), other choices {} (surest {:.3})",
            deviation.least_cosine(),
            deviation.median_cosine(),
            deviation.worst_vad(),
            deviation.vad_noise(),
            deviation.other_choices,
            deviation.surest_other_choice,
        );
    }
    Ok(())
}
