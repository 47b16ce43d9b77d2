//! What norms add to a mean square or a variance, as Kyutai trained with it.

pub(crate) const RMS_EPSILON: f32 = 1e-8;
pub(crate) const LAYER_EPSILON: f32 = 1e-5;
