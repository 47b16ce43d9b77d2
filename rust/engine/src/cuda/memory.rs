//! Memory: a card's own, and what it reaches of the machine's.

use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::sys;

use super::driver::{Card, check};
use crate::EngineError;

/// Memory of a card.
pub(super) struct Memory {
    card: Arc<Card>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// So many bytes, all zero.
    ///
    /// # Errors
    /// When the card has not so much left.
    pub(super) fn zeroed(card: &Arc<Card>, bytes: usize) -> Result<Self, EngineError> {
        let memory = Self::new(card, bytes)?;
        // SAFETY: all of it is this memory's own. Unlike copies, it need not be waited for: what
        // reads it comes after it in the same stream.
        let set = unsafe { sys::cuMemsetD8Async(memory.address, 0, memory.bytes, card.stream) };
        check(set, "clearing memory")?;
        Ok(memory)
    }

    /// Has all of it become what `from` is then, which is as large.
    ///
    /// # Safety
    /// `from` stays until then.
    pub(super) unsafe fn copy_of(&self, from: &Self) -> Result<(), EngineError> {
        assert_eq!(self.bytes, from.bytes);
        // SAFETY: both are that large; the caller vouches for their lives.
        let copied = unsafe {
            sys::cuMemcpyDtoDAsync_v2(self.address, from.address, self.bytes, self.card.stream)
        };
        check(copied, "copying on the card")
    }

    /// What `numbers` are.
    ///
    /// # Errors
    /// As [`Memory::zeroed`].
    pub(super) fn of<T: Copy>(card: &Arc<Card>, numbers: &[T]) -> Result<Self, EngineError> {
        let memory = Self::new(card, size_of_val(numbers))?;
        // SAFETY: the memory is as large as the numbers.
        let copied = unsafe {
            sys::cuMemcpyHtoD_v2(memory.address, numbers.as_ptr().cast(), size_of_val(numbers))
        };
        check(copied, "filling memory")?;
        Ok(memory)
    }

    /// Replaces what is from the byte `start` on.
    ///
    /// # Panics
    /// When `numbers` do not fit.
    pub(super) fn write<T: Copy>(&self, start: usize, numbers: &[T]) -> Result<(), EngineError> {
        let bytes = size_of_val(numbers);
        assert!(start + bytes <= self.bytes, "{bytes} bytes at {start} of {}", self.bytes);
        self.card.bind()?;
        // What was asked for before is done before.
        self.card.synchronize()?;
        // SAFETY: the memory is large enough.
        let copied = unsafe {
            sys::cuMemcpyHtoD_v2(self.address + start as u64, numbers.as_ptr().cast(), bytes)
        };
        check(copied, "filling memory")
    }

    fn new(card: &Arc<Card>, bytes: usize) -> Result<Self, EngineError> {
        // The driver has no memory of no size.
        let bytes = bytes.max(1);
        let mut address = 0;
        card.bind()?;
        // SAFETY: fills an address.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(EngineError::out_of_memory(bytes as u64))
            }
            result => {
                check(result, "taking memory")?;
                card.taken.fetch_add(bytes as u64, Ordering::Relaxed);
                Ok(Self { card: card.clone(), address, bytes })
            }
        }
    }

    /// For a kernel: where it begins.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// Has the first of it become what `from` is then.
    ///
    /// # Safety
    /// `from` stays until the copy, and whenever a graph with it runs.
    pub(super) unsafe fn receive(&self, from: &Pinned, bytes: usize) -> Result<(), EngineError> {
        assert!(bytes <= self.bytes && bytes <= from.bytes, "{bytes} bytes do not fit");
        // SAFETY: both are that large; the caller vouches for their lives.
        let copied = unsafe {
            sys::cuMemcpyHtoDAsync_v2(self.address, from.pointer.cast(), bytes, self.card.stream)
        };
        check(copied, "sending to the card")
    }

    /// Has the first of `to` become what this is then.
    ///
    /// # Safety
    /// As [`Memory::receive`].
    pub(super) unsafe fn send(&self, to: &Pinned, bytes: usize) -> Result<(), EngineError> {
        assert!(bytes <= self.bytes && bytes <= to.bytes, "{bytes} bytes do not fit");
        // SAFETY: as above.
        let copied = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.pointer.cast(), self.address, bytes, self.card.stream)
        };
        check(copied, "reading from the card")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.card.taken.fetch_sub(self.bytes as u64, Ordering::Relaxed);
        // SAFETY: nothing that is still to run uses it: its owner has waited for the card.
        unsafe {
            sys::cuCtxSetCurrent(self.card.context);
            sys::cuMemFree_v2(self.address);
        }
    }
}

/// Memory of the machine that a card reads and writes by itself.
pub(super) struct Pinned {
    card: Arc<Card>,
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: memory that nobody else has.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(card: &Arc<Card>, bytes: usize) -> Result<Self, EngineError> {
        let mut pointer = null_mut();
        card.bind()?;
        // SAFETY: fills a pointer.
        let taken = unsafe { sys::cuMemHostAlloc(&mut pointer, bytes.max(1), 0) };
        check(taken, "taking memory that the card can reach")?;
        let pointer = pointer.cast::<u8>();
        // SAFETY: it is that large.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(Self { card: card.clone(), pointer, bytes })
    }

    /// `count` numbers from `start` on, in bytes.
    ///
    /// # Panics
    /// When they are not within it or not aligned.
    pub(super) fn numbers<T: Plain>(&self, start: usize, count: usize) -> &[T] {
        self.check::<T>(start, count);
        // SAFETY: checked, and no card writes it while somebody looks: steps end with waiting.
        unsafe { std::slice::from_raw_parts(self.pointer.add(start).cast(), count) }
    }

    /// As [`Pinned::numbers`], to be written.
    pub(super) fn numbers_mut<T: Plain>(&mut self, start: usize, count: usize) -> &mut [T] {
        self.check::<T>(start, count);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start).cast(), count) }
    }

    fn check<T>(&self, start: usize, count: usize) {
        let end = count.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(start));
        assert!(end.is_some_and(|end| end <= self.bytes), "{count} numbers at {start}");
        assert!(start.is_multiple_of(align_of::<T>()), "{start} is not aligned");
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: nothing that is still to run uses it: its owner has waited for the card.
        unsafe {
            sys::cuCtxSetCurrent(self.card.context);
            sys::cuMemFreeHost(self.pointer.cast());
        }
    }
}

/// Types of which every pattern of bits is a value.
///
/// # Safety
/// It is so.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: any bits are a number.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
