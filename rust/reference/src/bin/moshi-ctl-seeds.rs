//! Looks for random weights whose decisions on the long recording are clear, for the exactness
//! tests: prints how varied the oracle's tokens are, how close its decisions, and how far our
//! engine is from it.
//!
//!     moshi-ctl-seeds SHAPE FIRST_SEED LAST_SEED [FRAMES]

use moshi_ctl_core::Precision;
use moshi_ctl_core::units::{TEXT_TOKEN_END_OF_PADDING, TEXT_TOKEN_PADDING};
use moshi_ctl_engine::Conditioning;
use moshi_ctl_reference::audio::{asset, read_frames};
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::compare::{Comparison, distinct_codes, distinct_text, share};
use moshi_ctl_reference::oracle::Frame;
use moshi_ctl_reference::{Result, ours, shapes};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: moshi-ctl-seeds SHAPE FIRST_SEED LAST_SEED [FRAMES]";
    let [name, first, last, ..] = arguments.as_slice() else { return Err(usage.into()) };
    let shape = shapes::named(name)?;
    let count = arguments.get(3).map_or(Ok(usize::MAX), |frames| frames.parse())?;
    let frames = read_frames(&asset("speech-long.wav"))?;
    let frames = &frames[..count.min(frames.len())];
    let folder = std::env::temp_dir().join(format!("moshi-ctl-seeds-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    for seed in first.parse()?..=last.parse()? {
        let mut files = Checkpoints::write(&folder, shape.clone(), seed, Precision::Bf16)?;
        let told: &[_] = match shape.conditioners {
            None => &[None],
            Some(_) => &[Some(Conditioning::LearntPadding), Some(Conditioning::DelaySeconds(0.5))],
        };
        for &conditioning in told {
            files.conditioning = conditioning;
            println!("seed {seed}, {conditioning:?}");
            report(&files, frames)?;
        }
    }
    Ok(std::fs::remove_dir_all(folder)?)
}

fn report(files: &Checkpoints, frames: &[Vec<f32>]) -> Result<()> {
    let ours = ours::hear(&mut files.engine(1)?, 0, frames)?;
    let mut oracle = files.oracle()?;
    let heard = frames.iter().map(|pcm| oracle.step(pcm)).collect::<Result<Vec<Frame>>>()?;
    println!(
        "    codes {:?}, {} text tokens, padding {:.2}, end of padding {:.2}",
        distinct_codes(&heard),
        distinct_text(&heard),
        share(&heard, TEXT_TOKEN_PADDING),
        share(&heard, TEXT_TOKEN_END_OF_PADDING),
    );
    for head in 0..heard[0].vad.len() {
        let values = || heard.iter().map(|frame| frame.vad[head]);
        let (low, high) = (values().fold(1.0, f32::min), values().fold(0.0, f32::max));
        println!("    VAD head {head}: {low:.3} to {high:.3}");
    }
    println!("    {:?}", heard.iter().map(|frame| frame.text_token).collect::<Vec<_>>());
    println!("    {:?}", Comparison::new(&heard, &ours));
    Ok(())
}
