//! Locking what is whole at any time, also where a thread panicked that held it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose value no panic can leave half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
