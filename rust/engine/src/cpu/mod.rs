//! The model in our own kernels, on plain slices: what the CPU runs.
//!
//! Every output element is a fixed sequence of operations that depends neither on how many lanes
//! a step has nor on how many threads run it. That is what makes a lane's result independent of
//! its neighbours, bit for bit. A step allocates nothing once it has had as many lanes before.

mod attention;
mod codec;
mod kernels;
mod layout;
mod linear;
mod lm;
mod norm;
mod pool;
mod transformer;

use std::sync::Once;
use std::time::Instant;

use self::codec::Codec;
use self::kernels::{InstructionSet, chosen};
pub(crate) use self::layout::CpuLayout;
use self::lm::LanguageModel;
use self::pool::Pool;
use crate::EngineError;
use crate::backend::{Backend, Codes, LmInputs, LmOutputs, Processor, StepTiming, ThreadTime};
use crate::weights::{Model, Weights};

/// The most threads a step may be divided among.
pub const MAX_THREADS: usize = 256;

/// A model on the CPU.
pub(crate) struct CpuBackend {
    instructions: InstructionSet,
    codec: Codec,
    lm: LanguageModel,
    pool: Pool,
}

impl CpuBackend {
    /// Loads a model to be run by `threads` threads; one per physical core where none are named.
    pub(crate) fn load(
        model: &Model<'_>,
        codec: &Weights<'_>,
        lm: &Weights<'_>,
        threads: Option<usize>,
    ) -> Result<Self, EngineError> {
        let Model { shape, lanes, .. } = *model;
        let instructions = chosen()?;
        warn_if_slow(instructions);
        let threads = check_threads(threads)?;
        Ok(Self {
            instructions,
            lm: LanguageModel::load(model, lm)?,
            codec: Codec::load(&shape.codec, shape.audio_codebooks, lanes, codec)?,
            pool: Pool::new(threads)?,
        })
    }
}

impl Backend for CpuBackend {
    fn reset(&mut self, lane: usize) {
        self.codec.reset(lane);
        self.lm.reset(lane);
    }

    fn keep_lanes(&mut self, count: usize) {
        self.codec.keep_lanes(count);
        self.lm.keep_lanes(count);
    }

    fn fill_context(&mut self, lane: usize) -> Result<(), EngineError> {
        self.codec.fill_context(lane);
        self.lm.fill_context(lane);
        Ok(())
    }

    fn step(
        &mut self,
        pcm: &[f32],
        lanes: &[usize],
        inputs: &LmInputs,
        codes: &mut Codes,
        outputs: &mut LmOutputs,
    ) -> Result<StepTiming, EngineError> {
        let Self { codec, lm, pool, .. } = self;
        let started = Instant::now();
        // Side by side, because the codec is bound by arithmetic and the language model by memory.
        let [of_lm, of_codec] = pool.join(
            |pool| lm.forward(inputs, lanes, outputs, pool),
            |pool| codec.encode(pcm, lanes, codes, pool),
        );
        let whole = started.elapsed();
        let spent = (of_codec.total() + of_lm.total()).as_secs_f64().max(f64::MIN_POSITIVE);
        let codec = whole.mul_f64(of_codec.total().as_secs_f64() / spent);
        let threads = Some(ThreadTime { codec: of_codec, lm: of_lm });
        Ok(StepTiming { codec, lm: whole.saturating_sub(codec), threads })
    }

    fn processor(&self) -> Option<Processor> {
        Some(Processor { threads: self.pool.threads(), instructions: self.instructions.name() })
    }
}

/// What would compute on this CPU, with as many threads as are wished for.
///
/// # Errors
/// When there cannot be so many, or MOSHI_INSTRUCTIONS asks for what is not there.
pub fn processor(threads: Option<usize>) -> Result<Processor, EngineError> {
    Ok(Processor { threads: check_threads(threads)?, instructions: chosen()?.name() })
}

/// The instruction sets that kernels of ours have and this CPU too, the best first.
pub fn available_instructions() -> Vec<&'static str> {
    InstructionSet::available().into_iter().map(InstructionSet::name).collect()
}

/// How many threads a step has: as many as are wished for, else one per core.
fn check_threads(wish: Option<usize>) -> Result<usize, EngineError> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let Some(threads) = wish else {
        // A step is bound by memory and by vector units, which hyper-threads share.
        return Ok(processors.min(num_cpus::get_physical()).clamp(1, MAX_THREADS));
    };
    if !(1..=MAX_THREADS).contains(&threads) {
        return Err(EngineError::new(format!("a step cannot have {threads} threads"))
            .with_hint(format!("Use 1 to {MAX_THREADS}; the default is one per physical core.")));
    }
    if threads > processors {
        tracing::warn!(
            "{threads} threads on {processors} processors wait for each other: steps take longer \
             than with fewer"
        );
    }
    Ok(threads)
}

/// Warns once per process, however many models it has.
fn warn_if_slow(instructions: InstructionSet) {
    static WARNED: Once = Once::new();
    if instructions != InstructionSet::Portable {
        return;
    }
    WARNED.call_once(|| {
        let why = match InstructionSet::available()[..] {
            [InstructionSet::Portable] => "this processor has none of the vector instructions in use",
            _ => "MOSHI_INSTRUCTIONS asks for it",
        };
        tracing::warn!(
            "portable code runs, because {why}: about ten times slower than AVX2; a billion weights \
             take two cores a third of a second a step, four times what one live stream allows"
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_threads_that_make_no_sense_are_refused() {
        assert!(check_threads(None).unwrap() >= 1);
        assert_eq!(check_threads(Some(MAX_THREADS)).unwrap(), MAX_THREADS);
        for wish in [0, MAX_THREADS + 1] {
            let error = check_threads(Some(wish)).unwrap_err();
            assert!(error.to_string().contains(&wish.to_string()), "{error}");
            assert!(error.hint().unwrap().contains("256"));
        }
    }
}
