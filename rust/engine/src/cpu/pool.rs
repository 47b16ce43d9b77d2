//! The threads of a step: few, awake while it lasts, asleep between two.
//!
//! A step hands work over some four hundred times, each worth about a tenth of a millisecond, so a
//! hand-over may cost no more than a few microseconds. Workers therefore look for the next piece
//! of work for a while before they sleep, and nothing is allocated.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::EngineError;
use crate::backend::WorkTime;

/// How long a worker looks for work before it sleeps. The pauses within a step are shorter.
const AWAKE: Duration = Duration::from_micros(150);
/// How often a waiting thread looks before it reads the clock, or lets others run.
const LOOKS: u32 = 64;

/// Of the pool itself.
const MAIN: usize = 0;
/// Of the two parts of [`Pool::join`].
const PARTS: [usize; 2] = [1, 2];

/// What a job is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Product,
    Attention,
    Rest,
}

/// A number of threads, the caller's among them, that share pieces of work.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Where this pool's jobs are put.
    track: usize,
    /// The thread that uses this pool.
    thread: usize,
    /// None in the pools that the parts of a [`Pool::join`] are given.
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    tracks: [Track; 3],
    workers: Vec<Worker>,
    closing: AtomicBool,
}

/// A place for one job at a time. Jobs on different tracks run side by side, and on cache lines of
/// their own.
#[derive(Default)]
#[repr(align(128))]
struct Track {
    /// How many pieces the present job has (high half) and how many are taken (low half).
    ticket: AtomicU64,
    /// The present job. Written only while no piece of a job is unfinished.
    job: UnsafeCell<Option<Job>>,
    finished: AtomicUsize,
    panicked: AtomicBool,
    /// Nanoseconds that threads spent on its pieces, by their [`Work`].
    busy: [AtomicU64; 3],
}

#[derive(Default)]
struct Worker {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    /// Called with a piece and the number of the thread. Outlives its pieces, not more.
    task: *const (dyn Fn(usize, usize) + Sync),
    pieces: usize,
    work: Work,
}

// SAFETY: `job` is written by the one caller of `run` (which has the track exclusively) while no
// piece is unfinished, and read only by threads that hold a piece; the ticket orders the two.
unsafe impl Sync for Track {}
// SAFETY: as above; the task is `Sync`.
unsafe impl Send for Track {}

impl Pool {
    /// Starts `threads - 1` workers and waits until they run.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn new(threads: usize) -> Result<Self, EngineError> {
        let others = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            tracks: Default::default(),
            workers: (0..others).map(|_| Worker::default()).collect(),
            closing: AtomicBool::new(false),
        });
        let mut pool = Self { shared, track: MAIN, thread: 0, workers: Vec::with_capacity(others) };
        for worker in 1..=others {
            let shared = pool.shared.clone();
            let started = thread::Builder::new()
                .name(format!("engine-{worker}"))
                .spawn(move || shared.work(worker));
            pool.workers.push(started.map_err(|error| {
                EngineError::new(format!(
                    "cannot start thread {} of {threads}: {error}",
                    worker + 1
                ))
                .with_hint("Raise the limit of processes, or lower --threads.")
            })?);
        }
        // The system's part of starting a thread asks for memory, which no step may.
        while pool.shared.workers.iter().any(|worker| worker.thread.get().is_none()) {
            thread::yield_now();
        }
        Ok(pool)
    }

    /// How many threads work, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.shared.workers.len() + 1
    }

    /// Calls `task` once with every number below `pieces`, on any of the threads, and with the
    /// number of that thread, below [`Pool::threads`]. Returns when all are done. Their time is
    /// counted as `work`.
    ///
    /// # Panics
    /// When a piece does.
    pub(crate) fn run(&mut self, work: Work, pieces: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        let shared = &*self.shared;
        let track = &shared.tracks[self.track];
        if pieces <= 1 || self.threads() == 1 {
            let started = Instant::now();
            (0..pieces).for_each(|piece| task(piece, self.thread));
            return track.add_busy(work, started);
        }
        track.finished.store(0, Ordering::Relaxed);
        // SAFETY: only the lifetime is changed, and this call outlasts every use. Nobody else is
        // looking at the job: the last one's pieces are finished, and none of this one is out.
        unsafe {
            let task = std::mem::transmute::<
                *const (dyn Fn(usize, usize) + Sync + '_),
                *const (dyn Fn(usize, usize) + Sync + 'static),
            >(task);
            *track.job.get() = Some(Job { task, pieces, work });
        }
        track.ticket.store((pieces as u64) << 32, Ordering::Release);
        // A worker notes that it sleeps and then looks once more; one of the two sees the other.
        fence(Ordering::SeqCst);
        for worker in &shared.workers {
            if worker.asleep.load(Ordering::Relaxed) {
                worker.thread.get().inspect(|thread| thread.unpark());
            }
        }
        while track.take_piece(self.thread) {}
        let mut looks = 0u32;
        while track.finished.load(Ordering::Acquire) < pieces {
            // The other part of a join may have pieces left; never a part itself, which would
            // keep this one waiting until its end.
            if PARTS.iter().any(|&part| shared.tracks[part].take_piece(self.thread)) {
                continue;
            }
            std::hint::spin_loop();
            looks = looks.wrapping_add(1);
            // The thread that holds the last piece may be waiting for this processor.
            if looks.is_multiple_of(LOOKS * LOOKS) {
                thread::yield_now();
            }
        }
        assert!(!track.panicked.swap(false, Ordering::Relaxed), "a thread of the step panicked");
    }

    /// Calls both functions, at the same time where there are threads enough, each with a pool of
    /// the same threads; a thread that has nothing to do for one helps the other. Returns what
    /// threads did in the jobs of each.
    ///
    /// # Panics
    /// When one of them does.
    pub(crate) fn join(
        &mut self,
        first: impl FnOnce(&mut Self) + Send,
        second: impl FnOnce(&mut Self) + Send,
    ) -> [WorkTime; 2] {
        let shared = self.shared.clone();
        let (first, second) = (Mutex::new(Some(first)), Mutex::new(Some(second)));
        self.run(Work::Rest, 2, &|part, thread| {
            let pool =
                &mut Self { shared: shared.clone(), track: PARTS[part], thread, workers: vec![] };
            match part {
                0 => call_once(&first, pool),
                _ => call_once(&second, pool),
            }
        });
        PARTS.map(|part| shared.tracks[part].take_busy())
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
        self.run(Work::Rest, chunks, &|chunk, _| {
            let range = chunk * len..items.len().min((chunk + 1) * len);
            // SAFETY: each chunk is one piece, and chunks do not overlap.
            f(chunk, unsafe { items.range(range) });
        });
    }
}

fn call_once<F: FnOnce(&mut Pool)>(f: &Mutex<Option<F>>, pool: &mut Pool) {
    let f = f.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(f) = f {
        f(pool);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.track != MAIN {
            return;
        }
        self.shared.closing.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its pieces, so it ends in order.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// What thread `thread` does, which is a worker: counted from 1.
    fn work(&self, thread: usize) {
        let Worker { thread: handle, asleep } = &self.workers[thread - 1];
        let _ = handle.set(thread::current());
        let mut idle_since = Instant::now();
        let mut looks = 0u32;
        while !self.closing.load(Ordering::Relaxed) {
            if self.take_piece(thread) {
                while self.take_piece(thread) {}
                idle_since = Instant::now();
            }
            std::hint::spin_loop();
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS) && idle_since.elapsed() > AWAKE {
                asleep.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                let nothing = !self.tracks.iter().any(Track::has_pieces);
                if nothing && !self.closing.load(Ordering::Relaxed) {
                    thread::park();
                }
                asleep.store(false, Ordering::Relaxed);
                idle_since = Instant::now();
            }
        }
    }

    /// Does one piece of any job. Parts of a join come first, so that they begin together.
    fn take_piece(&self, thread: usize) -> bool {
        self.tracks.iter().any(|track| track.take_piece(thread))
    }
}

impl Track {
    fn has_pieces(&self) -> bool {
        has_pieces(self.ticket.load(Ordering::Relaxed))
    }

    fn add_busy(&self, work: Work, since: Instant) {
        let spent = since.elapsed().as_nanos() as u64;
        self.busy[work as usize].fetch_add(spent, Ordering::Relaxed);
    }

    /// What threads did since this was asked last.
    fn take_busy(&self) -> WorkTime {
        let take =
            |work: Work| Duration::from_nanos(self.busy[work as usize].swap(0, Ordering::Relaxed));
        WorkTime {
            products: take(Work::Product),
            attention: take(Work::Attention),
            rest: take(Work::Rest),
        }
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
        if let Some(Job { task, pieces, work }) = job {
            debug_assert!(taken(ticket) < pieces);
            let started = Instant::now();
            // SAFETY: `run` waits for every piece, so the task is still there.
            let task = unsafe { &*task };
            let piece = taken(ticket);
            if catch_unwind(AssertUnwindSafe(|| task(piece, thread))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.add_busy(work, started);
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
            pool.run(Work::Rest, pieces, &|piece, thread| {
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
            pool.run(Work::Rest, 2, &|piece, _| {
                if piece == 0 { wait(&first, &second) } else { wait(&second, &first) }
            });
        }
    }

    #[test]
    fn both_parts_of_a_join_are_done_by_any_number_of_threads() {
        for threads in 1..=4 {
            let mut pool = Pool::new(threads).unwrap();
            let (mut sums, mut products) = (vec![0; 60], vec![0; 70]);
            for round in 1..=200 {
                let [first, second] = pool.join(
                    |pool| {
                        assert_eq!(pool.threads(), threads);
                        pool.for_each_chunk(&mut sums, 7, |_, sums| {
                            sums.iter_mut().for_each(|sum| *sum += round);
                        });
                        pool.for_each_chunk(&mut sums, 1, |_, sums| sums[0] += 1);
                    },
                    |pool| {
                        pool.for_each_chunk(&mut products, 3, |chunk, products| {
                            products.iter_mut().for_each(|product| *product = chunk * round);
                        });
                    },
                );
                assert!(first.rest > Duration::ZERO && second.rest > Duration::ZERO);
                assert_eq!(first.products + second.attention, Duration::ZERO);
                assert!((0..70).all(|i| products[i] == i / 3 * round));
            }
            assert!(sums.iter().all(|&sum| sum == (1..=200).sum::<usize>() + 200));
        }
    }

    #[test]
    fn a_thread_without_work_helps_the_other_part() {
        let mut pool = Pool::new(2).unwrap();
        let waiting = AtomicUsize::new(0);
        // Two pieces that wait for each other need both threads.
        let meet = |_: usize, _: usize| {
            waiting.fetch_add(1, Ordering::SeqCst);
            let started = Instant::now();
            while waiting.load(Ordering::SeqCst) < 2 {
                assert!(started.elapsed() < Duration::from_secs(20), "nobody helps");
                thread::yield_now();
            }
        };
        pool.join(|_| {}, |pool| pool.run(Work::Rest, 2, &meet));
        assert_eq!(waiting.swap(0, Ordering::SeqCst), 2);
        pool.join(|pool| pool.run(Work::Rest, 2, &meet), |_| {});
    }

    #[test]
    fn a_panic_in_a_part_reaches_the_caller() {
        for threads in [1, 3] {
            let mut pool = Pool::new(threads).unwrap();
            for wrong in [0, 1] {
                let mut parts = [false; 2];
                let [first, second] = &mut parts;
                let check = |part: usize, done: &mut bool, pool: &mut Pool| {
                    pool.run(Work::Rest, 5, &|piece, _| assert!(part != wrong || piece != 3));
                    *done = true;
                };
                let panicked = catch_unwind(AssertUnwindSafe(|| {
                    pool.join(|pool| check(0, first, pool), |pool| check(1, second, pool));
                }));
                assert!(panicked.is_err());
                assert!(!parts[wrong]);
            }
            let count = AtomicUsize::new(0);
            pool.run(Work::Rest, 8, &|_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 8);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(3).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            pool.run(Work::Rest, 9, &|piece, _| assert_ne!(piece, 5));
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
