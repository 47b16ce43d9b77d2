//! What a card's memory can do.

use super::driver::{Card, Moment};
use super::memory::Memory;
use crate::EngineError;

/// Large enough for caches to matter little.
const BYTES: usize = 256 << 20;

/// Copies that count, after some that warm up.
const COPIES: usize = 20;
const WARMUP: usize = 3;

/// Bytes that a card reads and writes in a second, all together, while it copies: each of several
/// copies.
pub(crate) fn bandwidth(ordinal: usize) -> Result<Vec<f64>, EngineError> {
    let card = Card::open(ordinal)?;
    let (from, to) = (Memory::zeroed(&card, BYTES)?, Memory::zeroed(&card, BYTES)?);
    let (before, after) = (Moment::new(&card)?, Moment::new(&card)?);
    let mut rates = vec![];
    for copy in 0..WARMUP + COPIES {
        before.mark()?;
        // SAFETY: both stay until the card is waited for.
        unsafe { to.copy_of(&from)? };
        after.mark()?;
        card.synchronize()?;
        if copy >= WARMUP {
            rates.push(2.0 * BYTES as f64 / after.since(&before)?.as_secs_f64());
        }
    }
    Ok(rates)
}
