//! What this machine can do at most: the rates a step is bound by. Each is measured by all threads
//! at once on code that does nothing else.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

mod multiply;

pub use multiply::Kernel;

/// Read once per repeat and larger than any cache; in bytes, all threads together.
const BUFFER_BYTES: usize = 1 << 30;

/// Multiply-adds of one thread in one repeat: a few hundredths of a second.
const MULTIPLY_ADDS: usize = 1 << 33;

/// A rate over several repeats, per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Of the repeats.
    pub median: f64,
    /// The slowest repeat's.
    pub lowest: f64,
    /// The fastest repeat's.
    pub highest: f64,
}

/// Bytes that `threads` read from memory together.
pub fn read_bandwidth(threads: usize, repeats: usize) -> Rate {
    // Every page is written to: untouched ones would all be the same page of zeros.
    let buffer: Vec<u64> = (0..BUFFER_BYTES as u64 / 8).collect();
    let parts: Vec<&[u64]> = buffer.chunks(buffer.len().div_ceil(threads)).collect();
    together(threads, repeats, |thread| {
        let part = parts[thread];
        black_box(sum(part));
        size_of_val(part)
    })
}

/// Operations of `kernel` that `threads` do together; a multiply-add is two.
pub fn multiply_rate(kernel: &Kernel, threads: usize, repeats: usize) -> Rate {
    let rounds = MULTIPLY_ADDS / kernel.speed_up / kernel.multiply_adds_per_round;
    together(threads, repeats, |_| {
        (kernel.run)(black_box(rounds));
        2 * rounds * kernel.multiply_adds_per_round
    })
}

/// Lets every thread do `work` at the same time and divides what they did by the time from the
/// first one's start to the last one's end. The first run only warms up.
fn together(threads: usize, repeats: usize, work: impl Fn(usize) -> usize + Sync) -> Rate {
    let once = || {
        let start_line = Barrier::new(threads);
        let run = |thread| {
            start_line.wait();
            let started = Instant::now();
            let done = work(thread);
            (started, Instant::now(), done)
        };
        let runs: Vec<_> = thread::scope(|scope| {
            let run = &run;
            let handles: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
            handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
        });
        let started = runs.iter().map(|run| run.0).min();
        let ended = runs.iter().map(|run| run.1).max();
        let done: usize = runs.iter().map(|run| run.2).sum();
        let elapsed = started.zip(ended).map(|(started, ended)| ended - started);
        done as f64 / elapsed.map_or(f64::NAN, |elapsed| elapsed.as_secs_f64())
    };
    once();
    let mut rates: Vec<f64> = (0..repeats.max(1)).map(|_| once()).collect();
    rates.sort_by(f64::total_cmp);
    Rate { median: rates[rates.len() / 2], lowest: rates[0], highest: rates[rates.len() - 1] }
}

fn sum(numbers: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide(numbers: &[u64]) -> u64 {
            in_order(numbers)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            return unsafe { wide(numbers) };
        }
    }
    in_order(numbers)
}

#[inline(always)]
fn in_order(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |sum, number| sum.wrapping_add(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_ordered_and_count_every_thread() {
        let rate = together(2, 3, |thread| {
            thread::sleep(std::time::Duration::from_millis(1));
            thread
        });
        assert!(0.0 < rate.lowest && rate.lowest <= rate.median && rate.median <= rate.highest);
    }

    #[test]
    fn every_number_is_read() {
        let numbers: Vec<u64> = (0..4_096).collect();
        assert_eq!(sum(&numbers), 4_095 * 2_048);
    }
}
