//! Large memory, asked for in a way that can be refused.

use std::alloc::{Layout, alloc_zeroed};

use crate::EngineError;

/// Numbers of which any bits are one, zeros among them.
///
/// # Safety
/// As it says.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: every bit pattern is a number.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}

/// Zeroed memory, of which the system gives out pages only as they are written.
///
/// # Errors
/// When the system refuses; `vec!` would end the process.
pub(crate) fn zeroed<T: Plain>(count: usize) -> Result<Vec<T>, EngineError> {
    let bytes = count.saturating_mul(size_of::<T>());
    let refused = || EngineError::out_of_memory(bytes as u64);
    let layout = Layout::array::<T>(count).map_err(|_| refused())?;
    if layout.size() == 0 {
        return Ok(vec![]);
    }
    // SAFETY: the layout has a size.
    let memory = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if memory.is_null() {
        return Err(refused());
    }
    // SAFETY: the memory is from the global allocator, of that layout, and zeros are `T`s.
    Ok(unsafe { Vec::from_raw_parts(memory, count, count) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_and_there() {
        assert_eq!(zeroed::<f32>(3).unwrap(), [0.0; 3]);
        assert!(zeroed::<u16>(0).unwrap().is_empty());
    }

    #[test]
    fn more_than_there_can_be_is_an_error() {
        for count in [usize::MAX, isize::MAX as usize / 4 - 8] {
            let error = zeroed::<f32>(count).unwrap_err();
            assert!(error.is_out_of_memory(), "{error}");
        }
    }
}
