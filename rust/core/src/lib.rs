//! What the engine and the server agree on, with neither a tensor nor a socket in sight:
//! the units of the domain, the shapes a configuration describes, and the one trait
//! through which the server drives a model.

mod device;
mod model;
mod one_line;
mod precision;
mod shape;
pub mod units;

pub use device::{DeviceName, UnknownDevice};
pub use model::{LaneFault, LaneFrame, LaneStep, ModelError, Prediction, StreamingModel};
pub use one_line::one_line;
pub use precision::Precision;
pub use shape::{
    CodecShape, Conditioner, ContinuousAttribute, DELAY_CONDITIONER, ExtraHeads, Gating, LmShape,
    LookUpTable, Norm, PositionalEmbedding, ShapeError, TransformerShape,
};
