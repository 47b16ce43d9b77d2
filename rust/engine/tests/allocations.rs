//! A step on the CPU asks for no memory once it has had as many lanes before.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use moshi_ctl_core::{LaneFrame, LmShape, Norm, Precision, StreamingModel};

mod common;

/// The system's allocator, with a count of how often any thread asked it for memory.
struct Counting;

static REQUESTS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LANES: usize = 7;

fn check(shape: &LmShape, precisions: (Precision, Precision)) {
    let folder = tempfile::tempdir().unwrap();
    common::write(folder.path(), shape);
    let mut model = common::load(folder.path(), shape, LANES, precisions);
    let pcm: Vec<Vec<f32>> = (0..LANES).map(common::noise).collect();
    let all: Vec<LaneFrame<'_>> =
        pcm.iter().enumerate().map(|(lane, pcm)| LaneFrame { lane, pcm }).collect();
    for _ in 0..2 {
        assert!(model.step(&all).unwrap().iter().all(|step| step.outcome.is_ok()));
    }
    // Rings are written over in the course of it.
    for present in [LANES, 3, 1, 0, LANES, 2, 5, LANES].into_iter().cycle().take(80) {
        let before = REQUESTS.load(Ordering::SeqCst);
        let results = model.step(&all[LANES - present..]).unwrap();
        let results_are_good = results.iter().all(|step| step.outcome.is_ok());
        let requests = REQUESTS.load(Ordering::SeqCst) - before;
        assert!(results_are_good);
        assert_eq!(requests, 0, "{precisions:?}: a step of {present} lanes asked for memory");
    }
}

/// One test for all, because what else runs would be counted too.
#[test]
fn a_step_asks_for_no_memory() {
    let gated = common::shape();
    let mut plain = gated.clone();
    plain.transformer.gating = None;
    plain.transformer.norm = Norm::LayerNorm;
    plain.transformer.layer_scale = Some(0.1);
    plain.transformer.bias_attn = true;
    plain.transformer.bias_ff = true;
    for shape in [gated, plain] {
        for precision in Precision::ALL {
            check(&shape, (precision, precision));
        }
        check(&shape, (Precision::Q8, Precision::F16));
    }
}
