//! NVIDIA's driver: a card, its kernels, and work that it does in order.
//!
//! The driver's library is opened when somebody asks for a card, not before: a machine without one
//! loads this code as well.

use std::ffi::{CStr, CString, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use cudarc::driver::sys::CUdevice_attribute as Attribute;

use crate::EngineError;

/// The kernels as text that drivers compile for their card, by the compute capability that it is for;
/// the best last. Kernels of bf16 are only in the second.
const KERNELS: [((u32, u32), &str); 2] = [
    ((7, 5), include_str!(concat!(env!("OUT_DIR"), "/turing.ptx"))),
    ((8, 0), include_str!(concat!(env!("OUT_DIR"), "/ampere.ptx"))),
];

/// The CUDA whose compiler makes them: major · 1000 + minor · 10.
const LEAST_CUDA: i32 = 12_000;

/// The first driver that serves it.
const LEAST_DRIVER: &str = "525";

/// What loading kernels takes when they have to be compiled, and not when they are kept.
const WORTH_A_WORD: Duration = Duration::from_millis(500);

/// A card, with the kernels of this program on it.
pub(crate) struct Card {
    number: sys::CUdevice,
    pub(super) context: sys::CUcontext,
    module: sys::CUmodule,
    pub(super) stream: sys::CUstream,
    compute_capability: (u32, u32),
    /// Bytes of all memory on it.
    pub(super) taken: AtomicU64,
}

// SAFETY: contexts, modules and streams are handles that any thread may use once the context is
// current there, which every call below sees to.
unsafe impl Send for Card {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Card {}

/// A kernel on a card.
#[derive(Clone, Copy)]
pub(super) struct Kernel(sys::CUfunction);

// SAFETY: a handle, as in `Card`.
unsafe impl Send for Kernel {}

/// Numbers that are given to a kernel by value.
///
/// # Safety
/// The type has the layout that the kernel expects.
pub(super) unsafe trait ByValue: Copy {}

// SAFETY: the same in C++.
unsafe impl ByValue for i32 {}
// SAFETY: as above.
unsafe impl ByValue for u64 {}
// SAFETY: as above.
unsafe impl ByValue for f32 {}

/// Starts the driver, as often as somebody asks.
///
/// # Errors
/// When there is none, it does not start, or it is too old.
pub(crate) fn start() -> Result<(), EngineError> {
    // SAFETY: opens a library of the system's by its name.
    if !unsafe { sys::is_culib_present() } {
        return Err(EngineError::new("libcuda, which the NVIDIA driver brings, cannot be loaded")
            .with_hint(
                "Install the NVIDIA driver; a container gets it with `--gpus all` and the driver \
                 capability `compute`.",
            ));
    }
    let mut served = 0;
    // SAFETY: fills a number.
    unsafe {
        check(sys::cuInit(0), "starting").map_err(|error| {
            error.with_hint("Look for what the driver says with `dmesg`, or restart the machine.")
        })?;
        check(sys::cuDriverGetVersion(&mut served), "asking for its version")?;
    }
    if served < LEAST_CUDA {
        let dotted = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        return Err(EngineError::new(format!(
            "the NVIDIA driver serves CUDA {}, and {} is needed",
            dotted(served),
            dotted(LEAST_CUDA)
        ))
        .with_hint(format!("Update the NVIDIA driver to {LEAST_DRIVER} or newer.")));
    }
    Ok(())
}

/// Blocks of a launch, and threads of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: [usize; 3],
    pub(super) threads: usize,
}

impl Card {
    /// Opens the card called `cuda:ordinal` and puts the kernels on it.
    ///
    /// # Errors
    /// When there is no driver or no such card, or it does not take the kernels.
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Self>, EngineError> {
        start()?;
        // SAFETY: each pointer is to something of the type that the driver fills or reads, and what
        // is read afterwards has been filled, because an error returns before that.
        unsafe {
            let mut number = 0;
            let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
            check(sys::cuDeviceGet(&mut number, ordinal), "looking for the card")?;
            let attribute = |which| {
                let mut value = 0;
                check(sys::cuDeviceGetAttribute(&mut value, which, number), "asking for the card")?;
                Ok::<_, EngineError>(value as u32)
            };
            let compute_capability = (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            );
            let (major, minor) = compute_capability;
            let kernels = KERNELS.into_iter().rfind(|(needed, _)| compute_capability >= *needed);
            let Some((_, kernels)) = kernels else {
                let ((needs_major, needs_minor), _) = KERNELS[0];
                return Err(EngineError::new(format!(
                    "it has compute capability {major}.{minor}, and {needs_major}.{needs_minor} is \
                     needed"
                )));
            };
            // Whoever waits for a step is to leave the processor to others. A card that is in use
            // already may keep what it was told first.
            let waiting = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32;
            let _ = sys::cuDevicePrimaryCtxSetFlags_v2(number, waiting);
            let mut context = MaybeUninit::uninit();
            let retained = sys::cuDevicePrimaryCtxRetain(context.as_mut_ptr(), number);
            check(retained, "opening the card")?;
            let mut card = Self {
                number,
                context: context.assume_init(),
                module: null_mut(),
                stream: null_mut(),
                compute_capability,
                taken: AtomicU64::new(0),
            };
            card.bind()?;
            let created = sys::cuStreamCreate(
                &mut card.stream,
                sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32,
            );
            check(created, "making a stream")?;
            card.compile(kernels)?;
            Ok(Arc::new(card))
        }
    }

    /// Has the driver compile the kernels, or find what it has made of them before.
    fn compile(&mut self, kernels: &str) -> Result<(), EngineError> {
        let text = CString::new(kernels).expect("kernels are text");
        let mut log = [0u8; 1024];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The second is a number in a pointer's place.
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), log.len() as *mut c_void];
        let started = Instant::now();
        // SAFETY: the text ends with a zero; the options have these values, which live.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(
                &mut self.module,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        check(loaded, "compiling the kernels for the card").map_err(|error| {
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            match log.lines().next() {
                Some(line) => EngineError::new(format!("{error}: {line}")),
                None => error,
            }
        })?;
        let took = started.elapsed();
        if took >= WORTH_A_WORD {
            tracing::info!(
                "the driver has compiled the kernels for this card in {:.1} s, and keeps them",
                took.as_secs_f64()
            );
        }
        Ok(())
    }

    /// Major and minor.
    pub(crate) fn compute_capability(&self) -> (u32, u32) {
        self.compute_capability
    }

    /// Bytes of all memory on it.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The kernel of this name.
    pub(super) fn kernel(&self, name: &str) -> Result<Kernel, EngineError> {
        let text = CString::new(name).expect("a kernel's name is text");
        let mut function = null_mut();
        // SAFETY: the module is loaded, the name ends with a zero.
        let found = unsafe { sys::cuModuleGetFunction(&mut function, self.module, text.as_ptr()) };
        check(found, &format!("looking for the kernel {name}"))?;
        Ok(Kernel(function))
    }

    /// Makes the card that of this thread, which every call wants.
    pub(super) fn bind(&self) -> Result<(), EngineError> {
        // SAFETY: the context lives as long as the card.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "turning to the card")
    }

    /// Has a kernel run after what was asked for before.
    ///
    /// # Safety
    /// The arguments are those that the kernel declares, and stay within the memory that they
    /// point to.
    pub(super) unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: Grid,
        arguments: &mut [*mut c_void],
    ) -> Result<(), EngineError> {
        let [x, y, z] = grid.blocks.map(|blocks| blocks as u32);
        // SAFETY: the caller vouches for the arguments.
        let launched = unsafe {
            sys::cuLaunchKernel(
                kernel.0,
                x,
                y,
                z,
                grid.threads as u32,
                1,
                1,
                0,
                self.stream,
                arguments.as_mut_ptr(),
                null_mut(),
            )
        };
        check(launched, "launching a kernel")
    }

    /// Waits for everything that was asked for.
    pub(super) fn synchronize(&self) -> Result<(), EngineError> {
        // SAFETY: the stream lives as long as the card.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "waiting for the card")
    }

    /// Waits for everything at all: copies from memory that the card cannot reach may be under way
    /// after their call has returned, outside of this card's stream.
    pub(super) fn settle(&self) -> Result<(), EngineError> {
        // SAFETY: the context is current and lives as long as the card.
        check(unsafe { sys::cuCtxSynchronize() }, "waiting for the card")
    }

    /// Notes what `record` asks for instead of doing it.
    pub(super) fn capture(
        self: &Arc<Self>,
        record: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<Graph, EngineError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the card.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) }, "recording a step")?;
        let recorded = record();
        let mut graph = null_mut();
        // SAFETY: the recording has begun above, and ends whatever became of it.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
        recorded.and(check(ended, "recording a step"))?;
        let mut ready = null_mut();
        // SAFETY: the graph was made above, and nobody needs it once it is instantiated.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0);
            sys::cuGraphDestroy(graph);
            made
        };
        check(made, "preparing a step")?;
        Ok(Graph { card: self.clone(), ready })
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // SAFETY: nothing that was made on the card is left: it would hold the card. Errors have
        // nobody to go to.
        unsafe {
            sys::cuCtxSetCurrent(self.context);
            if !self.module.is_null() {
                sys::cuModuleUnload(self.module);
            }
            if !self.stream.is_null() {
                sys::cuStreamDestroy_v2(self.stream);
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.number);
        }
    }
}

/// Work that was recorded, to be done again and again.
pub(super) struct Graph {
    card: Arc<Card>,
    ready: sys::CUgraphExec,
}

// SAFETY: a handle, as in `Card`.
unsafe impl Send for Graph {}

impl Graph {
    /// Has it all done after what was asked for before.
    pub(super) fn launch(&self) -> Result<(), EngineError> {
        // SAFETY: graph and stream live, and what the graph touches belongs to its owner.
        check(unsafe { sys::cuGraphLaunch(self.ready, self.card.stream) }, "starting a step")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph lives until here.
        unsafe {
            sys::cuCtxSetCurrent(self.card.context);
            sys::cuGraphExecDestroy(self.ready);
        }
    }
}

/// A moment in a card's work.
pub(super) struct Moment {
    card: Arc<Card>,
    event: sys::CUevent,
}

// SAFETY: a handle, as in `Card`.
unsafe impl Send for Moment {}

impl Moment {
    pub(super) fn new(card: &Arc<Card>) -> Result<Self, EngineError> {
        let mut event = null_mut();
        // SAFETY: fills a handle.
        check(unsafe { sys::cuEventCreate(&mut event, 0) }, "making an event")?;
        Ok(Self { card: card.clone(), event })
    }

    /// Is when everything that was asked for so far is done.
    pub(super) fn mark(&self) -> Result<(), EngineError> {
        // SAFETY: event and stream live.
        check(unsafe { sys::cuEventRecord(self.event, self.card.stream) }, "marking a moment")
    }

    /// Time from `earlier` to this; both have passed.
    pub(super) fn since(&self, earlier: &Self) -> Result<Duration, EngineError> {
        let mut ms = 0f32;
        // SAFETY: both events live and have been recorded.
        let result = unsafe { sys::cuEventElapsedTime(&mut ms, earlier.event, self.event) };
        check(result, "reading the time")?;
        Ok(Duration::from_secs_f32(ms.max(0.0) / 1e3))
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        // SAFETY: the event lives until here.
        unsafe {
            sys::cuCtxSetCurrent(self.card.context);
            sys::cuEventDestroy_v2(self.event);
        }
    }
}

pub(super) fn check(result: sys::CUresult, doing: &str) -> Result<(), EngineError> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: fills a pointer to a text that lives as long as the driver.
    let name = unsafe {
        match sys::cuGetErrorName(result, &mut name) {
            sys::CUresult::CUDA_SUCCESS => CStr::from_ptr(name).to_string_lossy().into_owned(),
            _ => format!("error {}", result as u32),
        }
    };
    if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return Err(EngineError::out_of_memory(0));
    }
    Err(EngineError::new(format!("the NVIDIA driver failed {doing}: {name}")))
}
