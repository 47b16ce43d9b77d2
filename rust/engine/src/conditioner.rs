//! Vectors that are added to every input of a language model.

use moshi_ctl_core::{Conditioner, ContinuousAttribute, DELAY_CONDITIONER, LmShape};

use crate::EngineError;
use crate::weights::Weights;

/// The value of a model's `delay` conditioner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Conditioning {
    /// Transcribe this far behind the audio.
    DelaySeconds(f32),
    /// Leave it to the model: its learnt padding vector.
    LearntPadding,
}

/// The vector, d_model, that `conditioning` asks for; none for a model without conditioners.
///
/// # Errors
/// When the model has conditioners but they do not fit `conditioning`.
pub(crate) fn condition(
    shape: &LmShape,
    conditioning: Option<Conditioning>,
    weights: &Weights<'_>,
) -> Result<Option<Vec<f32>>, EngineError> {
    let Some(conditioners) = &shape.conditioners else { return Ok(None) };
    let d_model = shape.transformer.d_model;
    let conditioner = conditioners.get(DELAY_CONDITIONER).ok_or_else(|| {
        let names: Vec<_> = conditioners.keys().collect();
        EngineError::new(format!(
            "the model has the conditioners {names:?}, but none is `{DELAY_CONDITIONER}`"
        ))
    })?;
    let weights = weights.at("condition_provider").at("conditioners").at(DELAY_CONDITIONER);
    let vector = match (conditioning, conditioner) {
        (Some(Conditioning::LearntPadding), _) => weights.vector("learnt_padding", d_model)?,
        (
            Some(Conditioning::DelaySeconds(delay_s)),
            Conditioner::ContinuousAttribute(attribute),
        ) => {
            // Kyutai's models are told the delay as a negative number.
            embed_number(attribute, -delay_s, d_model, &weights)?
        }
        (Some(Conditioning::DelaySeconds(_)), Conditioner::Lut(_)) => {
            return Err(EngineError::new(format!(
                "`conditioning_delay` is a number, but the conditioner `{DELAY_CONDITIONER}` is a look-up table"
            ))
            .with_hint("Use `conditioning_learnt_padding = true` instead."));
        }
        (None, _) => {
            return Err(EngineError::new(
                "the model has conditioners and needs to be told a delay",
            )
            .with_hint(
                "Set `conditioning_delay` (seconds) or `conditioning_learnt_padding = true`.",
            ));
        }
    };
    Ok(Some(vector))
}

/// Cosines and sines of the scaled number at wavelengths up to `max_period`, projected.
fn embed_number(
    attribute: &ContinuousAttribute,
    number: f32,
    d_model: usize,
    weights: &Weights<'_>,
) -> Result<Vec<f32>, EngineError> {
    let half = attribute.dim / 2;
    let scaled = number * attribute.scale_factor;
    let angles: Vec<f32> = (0..half)
        .map(|i| scaled * (1.0 / attribute.max_period.powf(i as f32 / (half - 1) as f32)))
        .collect();
    let embedding: Vec<f32> =
        angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect();
    let projection = weights.at("output_proj").f32_vec("weight", &[d_model, attribute.dim])?;
    let rows = projection.chunks_exact(attribute.dim);
    Ok(rows.map(|row| row.iter().zip(&embedding).map(|(a, b)| a * b).sum()).collect())
}
