//! The model in our own kernels, on plain slices: what the CPU runs.
//!
//! Every output element is a fixed sequence of operations that depends neither on how many lanes
//! a step has nor on how many threads run it. That is what makes a lane's result independent of
//! its neighbours, bit for bit. A step allocates nothing once it has had as many lanes before.

mod attention;
mod codec;
mod kernels;
mod linear;
mod lm;
mod norm;
mod pool;
mod transformer;

use self::codec::Codec;
use self::kernels::{DotLevel, dot_level};
use self::lm::LanguageModel;
use self::pool::Pool;
use crate::EngineError;
use crate::backend::{Backend, Codes, LmInputs, LmOutputs, Processor};
use crate::weights::{Model, Weights};

/// A model on the CPU.
pub(crate) struct CpuBackend {
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
        warn_of_slowness();
        Ok(Self {
            lm: LanguageModel::load(model, lm)?,
            codec: Codec::load(&shape.codec, shape.audio_codebooks, lanes, codec)?,
            pool: Pool::new(threads.unwrap_or_else(physical_cores))?,
        })
    }
}

impl Backend for CpuBackend {
    fn reset(&mut self, lane: usize) {
        self.codec.reset(lane);
        self.lm.reset(lane);
    }

    fn fill_context(&mut self, lane: usize) -> Result<(), EngineError> {
        self.codec.fill_context(lane);
        self.lm.fill_context(lane);
        Ok(())
    }

    fn encode(
        &mut self,
        pcm: &[f32],
        lanes: &[usize],
        codes: &mut Codes,
    ) -> Result<(), EngineError> {
        self.codec.encode(pcm, lanes, codes, &mut self.pool);
        Ok(())
    }

    fn predict(
        &mut self,
        inputs: &LmInputs,
        lanes: &[usize],
        outputs: &mut LmOutputs,
    ) -> Result<(), EngineError> {
        self.lm.forward(inputs, lanes, outputs, &mut self.pool);
        Ok(())
    }

    fn processor(&self) -> Option<Processor> {
        Some(Processor { threads: self.pool.threads(), instructions: dot_level().name() })
    }
}

/// The cores this process may use, hyper-threads not counted: a step is bound by memory and by
/// vector units, which they share.
fn physical_cores() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    available.min(num_cpus::get_physical())
}

fn warn_of_slowness() {
    if dot_level() == DotLevel::Portable {
        tracing::warn!(
            "this processor has none of AVX-512 VNNI, AVX-VNNI, AVX2 or NEON dot product: the \
             portable code runs, about ten times slower than AVX2; a model of a billion weights \
             will not keep real time"
        );
    }
}
