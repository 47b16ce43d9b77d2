//! Makes a model fail on purpose, as `MOSHI_FAULT` says: for tests of what a server makes of it.

use std::str::FromStr;
use std::time::{Duration, Instant};

use moshi_ctl_core::{LaneFault, LaneFrame, LaneStep, ModelError, StreamingModel};

const VARIABLE: &str = "MOSHI_FAULT";

/// What goes wrong. Steps are counted from 1, after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `panic@N`
    Panic { step: usize },
    /// `error@N`
    Error { step: usize },
    /// `out-of-memory@N`
    OutOfMemory { step: usize },
    /// `hang@N`: the step never ends.
    Hang { step: usize },
    /// `slow:MS`: no step takes less.
    Slow { least: Duration },
    /// `nan-logits@N`: for the first lane of that step.
    NanLogits { step: usize },
    /// `leak:BYTES`: with every reset of a lane.
    Leak { bytes: usize },
}

impl FromStr for Fault {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let unknown = || ModelError::new(format!("{VARIABLE}: `{text}` is no fault"));
        let (kind, number) = text.split_once(['@', ':']).ok_or_else(unknown)?;
        let number: usize = number.parse().map_err(|_| unknown())?;
        Ok(match kind {
            "panic" => Self::Panic { step: number },
            "error" => Self::Error { step: number },
            "out-of-memory" => Self::OutOfMemory { step: number },
            "hang" => Self::Hang { step: number },
            "slow" => Self::Slow { least: Duration::from_millis(number as u64) },
            "nan-logits" => Self::NanLogits { step: number },
            "leak" => Self::Leak { bytes: number },
            _ => return Err(unknown()),
        })
    }
}

/// The model, with a fault if one is wished for.
pub(crate) fn injected(
    model: Box<dyn StreamingModel>,
) -> Result<Box<dyn StreamingModel>, ModelError> {
    let Ok(wish) = std::env::var(VARIABLE) else { return Ok(model) };
    let fault: Fault = wish.parse()?;
    tracing::warn!("{VARIABLE}={wish}: the model will fail on purpose");
    Ok(Box::new(Faulty { model, fault, warm: false, step: 0, results: Vec::new() }))
}

struct Faulty {
    model: Box<dyn StreamingModel>,
    fault: Fault,
    warm: bool,
    /// Steps since the warm-up.
    step: usize,
    results: Vec<LaneStep>,
}

impl StreamingModel for Faulty {
    fn lanes(&self) -> usize {
        self.model.lanes()
    }

    fn settle(&mut self) -> Result<(), ModelError> {
        self.warm = true;
        self.model.settle()
    }

    fn reset(&mut self, lane: usize, seed: u64) -> Result<(), ModelError> {
        if let Fault::Leak { bytes } = self.fault {
            // Touched, so that it is taken from the machine too.
            vec![1u8; bytes].leak();
        }
        self.model.reset(lane, seed)
    }

    fn step(&mut self, frames: &[LaneFrame<'_>]) -> Result<&[LaneStep], ModelError> {
        if !self.warm {
            return self.model.step(frames);
        }
        self.step += 1;
        let began = Instant::now();
        match self.fault {
            Fault::Panic { step } => assert_ne!(step, self.step, "a panic on purpose"),
            Fault::Error { step } if step == self.step => {
                return Err(ModelError::new("an error on purpose"));
            }
            Fault::OutOfMemory { step } if step == self.step => {
                let all = vec![0u8; 0].try_reserve_exact(isize::MAX as usize);
                return all.map_err(|error| ModelError::new(error.to_string())).map(|()| &[][..]);
            }
            Fault::Hang { step } if step == self.step => loop {
                std::thread::park();
            },
            _ => {}
        }
        let results = self.model.step(frames)?;
        if let Fault::Slow { least } = self.fault {
            std::thread::sleep(least.saturating_sub(began.elapsed()));
        }
        match self.fault {
            Fault::NanLogits { step } if step == self.step => {
                self.results = results.to_vec();
                if let Some(first) = self.results.first_mut() {
                    first.outcome = Err(LaneFault::NonFiniteLogits);
                }
                Ok(&self.results)
            }
            _ => Ok(results),
        }
    }
}
