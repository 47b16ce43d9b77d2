//! The threads of a step: few, awake while it lasts, asleep between two.
//!
//! A step hands work over some two hundred times, each worth about a tenth of a millisecond, so a
//! hand-over may cost no more than a few microseconds. Workers therefore look for the next piece
//! of work for a while before they sleep, and nothing is allocated.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::EngineError;

/// How long a worker looks for work before it sleeps. The pauses within a step are shorter.
const AWAKE: Duration = Duration::from_micros(150);
/// How often a waiting thread looks before it reads the clock, or lets others run.
const LOOKS: u32 = 64;

/// A number of threads, the caller's among them, that share pieces of work.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// How many pieces the present job has (high half) and how many are taken (low half).
    ticket: AtomicU64,
    /// The present job. Written only while no piece of a job is unfinished.
    job: UnsafeCell<Option<Job>>,
    finished: AtomicUsize,
    panicked: AtomicBool,
    closing: AtomicBool,
    started: AtomicUsize,
    asleep: Vec<AtomicBool>,
}

#[derive(Clone, Copy)]
struct Job {
    /// Called with a piece and the number of the thread. Outlives its pieces, not more.
    task: *const (dyn Fn(usize, usize) + Sync),
    pieces: usize,
}

// SAFETY: `job` is written by the one caller of `run` (which has the pool exclusively) while no
// piece is unfinished, and read only by threads that hold a piece; the ticket orders the two.
unsafe impl Sync for Shared {}
// SAFETY: as above; the task is `Sync`.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `threads - 1` workers and waits until they run.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn new(threads: usize) -> Result<Self, EngineError> {
        let others = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            finished: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            started: AtomicUsize::new(0),
            asleep: (0..others).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(others) };
        for worker in 0..others {
            let shared = pool.shared.clone();
            let started = thread::Builder::new()
                .name(format!("engine-{}", worker + 1))
                .spawn(move || shared.work(worker));
            pool.workers.push(started.map_err(|error| {
                EngineError::new(format!(
                    "cannot start thread {} of {threads}: {error}",
                    worker + 2
                ))
                .with_hint("Raise the limit of processes, or lower --threads.")
            })?);
        }
        // The system's part of starting a thread asks for memory, which no step may.
        while pool.shared.started.load(Ordering::Acquire) < others {
            thread::yield_now();
        }
        Ok(pool)
    }

    /// How many threads work, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once with every number below `pieces`, on any of the threads, and with the
    /// number of that thread, below [`Pool::threads`]. Returns when all are done.
    ///
    /// # Panics
    /// When a piece does.
    pub(crate) fn run(&mut self, pieces: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if pieces <= 1 || self.workers.is_empty() {
            return (0..pieces).for_each(|piece| task(piece, 0));
        }
        let shared = &*self.shared;
        shared.finished.store(0, Ordering::Relaxed);
        // SAFETY: only the lifetime is changed, and this call outlasts every use. Nobody else is
        // looking at the job: the last one's pieces are finished, and none of this one is out.
        unsafe {
            let task = std::mem::transmute::<
                *const (dyn Fn(usize, usize) + Sync + '_),
                *const (dyn Fn(usize, usize) + Sync + 'static),
            >(task);
            *shared.job.get() = Some(Job { task, pieces });
        }
        shared.ticket.store((pieces as u64) << 32, Ordering::Release);
        // A worker notes that it sleeps and then looks once more; one of the two sees the other.
        fence(Ordering::SeqCst);
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers) {
            if asleep.load(Ordering::Relaxed) {
                worker.thread().unpark();
            }
        }
        while shared.take_piece(self.workers.len()) {}
        let mut looks = 0u32;
        while shared.finished.load(Ordering::Acquire) < pieces {
            std::hint::spin_loop();
            looks = looks.wrapping_add(1);
            // The thread that holds the last piece may be waiting for this processor.
            if looks.is_multiple_of(LOOKS * LOOKS) {
                thread::yield_now();
            }
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a thread of the step panicked");
    }

    /// Calls `f` with each chunk of `len` items and its number, on any of the threads.
    pub(crate) fn for_each_chunk<T: Send>(
        &mut self,
        items: &mut [T],
        len: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let chunks = items.len().div_ceil(len.max(1));
        let items = Disjoint::new(items);
        self.run(chunks, &|chunk, _| {
            let range = chunk * len..items.len().min((chunk + 1) * len);
            // SAFETY: each chunk is one piece, and chunks do not overlap.
            f(chunk, unsafe { items.range(range) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its pieces, so it ends in order.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        self.started.fetch_add(1, Ordering::Release);
        let mut idle_since = Instant::now();
        let mut looks = 0u32;
        while !self.closing.load(Ordering::Relaxed) {
            if self.take_piece(worker) {
                while self.take_piece(worker) {}
                idle_since = Instant::now();
            }
            std::hint::spin_loop();
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS) && idle_since.elapsed() > AWAKE {
                self.asleep[worker].store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                if !self.has_pieces() && !self.closing.load(Ordering::Relaxed) {
                    thread::park();
                }
                self.asleep[worker].store(false, Ordering::Relaxed);
                idle_since = Instant::now();
            }
        }
    }

    fn has_pieces(&self) -> bool {
        has_pieces(self.ticket.load(Ordering::Relaxed))
    }

    /// Does one piece of the present job, if one is left.
    fn take_piece(&self, thread: usize) -> bool {
        if !self.has_pieces() {
            return false;
        }
        let ticket = self.ticket.fetch_add(1, Ordering::Acquire);
        if !has_pieces(ticket) {
            return false;
        }
        // SAFETY: this thread holds an unfinished piece, so the job stays as it is, and what the
        // caller wrote before it issued the ticket is visible.
        let job = unsafe { *self.job.get() };
        if let Some(Job { task, pieces }) = job {
            debug_assert!(taken(ticket) < pieces);
            // SAFETY: `run` waits for every piece, so the task is still there.
            let task = unsafe { &*task };
            let piece = taken(ticket);
            if catch_unwind(AssertUnwindSafe(|| task(piece, thread))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
        self.finished.fetch_add(1, Ordering::Release);
        true
    }
}

fn has_pieces(ticket: u64) -> bool {
    ticket & u64::from(u32::MAX) < ticket >> 32
}

fn taken(ticket: u64) -> usize {
    (ticket & u64::from(u32::MAX)) as usize
}

/// A slice whose parts several threads write, each its own.
pub(crate) struct Disjoint<'a, T> {
    items: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out parts only under the promise that they do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(items: &'a mut [T]) -> Self {
        Self { items: items.as_mut_ptr(), len: items.len(), borrow: std::marker::PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The items of a range.
    ///
    /// # Safety
    /// No two ranges that are in use at the same time may overlap.
    #[allow(clippy::mut_from_ref, reason = "that is what the type is for")]
    pub(crate) unsafe fn range(&self, range: std::ops::Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: within the slice; the caller vouches that nobody else has these items.
        unsafe { std::slice::from_raw_parts_mut(self.items.add(range.start), range.len()) }
    }

    /// One item.
    ///
    /// # Safety
    /// As for [`Disjoint::range`].
    #[allow(clippy::mut_from_ref, reason = "that is what the type is for")]
    pub(crate) unsafe fn item(&self, index: usize) -> &'a mut T {
        // SAFETY: the caller's; the range has one item.
        unsafe { &mut self.range(index..index + 1)[0] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_however_often() {
        let mut pool = Pool::new(4).unwrap();
        for round in 0..2000 {
            let pieces = round % 23;
            let counts: Vec<_> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
            pool.run(pieces, &|piece, thread| {
                assert!(thread < 4);
                counts[piece].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn threads_that_fell_asleep_wake_up() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            thread::sleep(20 * AWAKE);
            let (first, second) = (AtomicBool::new(false), AtomicBool::new(false));
            // Each piece waits for the other: one thread alone would never get to the end.
            let wait = |mine: &AtomicBool, other: &AtomicBool| {
                mine.store(true, Ordering::SeqCst);
                let started = Instant::now();
                while !other.load(Ordering::SeqCst) {
                    assert!(started.elapsed() < Duration::from_secs(20), "nobody woke up");
                    thread::yield_now();
                }
            };
            pool.run(2, &|piece, _| {
                if piece == 0 { wait(&first, &second) } else { wait(&second, &first) }
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(3).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            pool.run(9, &|piece, _| assert_ne!(piece, 5));
        }));
        assert!(panicked.is_err());
        let mut squares = vec![0; 10];
        pool.for_each_chunk(&mut squares, 3, |chunk, squares| {
            for (i, square) in squares.iter_mut().enumerate() {
                *square = (3 * chunk + i).pow(2);
            }
        });
        assert_eq!(squares, (0..10).map(|i| i * i).collect::<Vec<_>>());
    }
}
