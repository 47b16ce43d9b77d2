//! Safetensors files by memory map, converted tensor by tensor.

use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use moshi_ctl_core::Precision;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use crate::EngineError;

/// Bytes of the length that precedes a safetensors header.
const HEADER_LENGTH_BYTES: usize = 8;

/// An open safetensors file.
pub(crate) struct Checkpoint {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

impl Checkpoint {
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        let bad = |what: String| {
            EngineError::new(format!("{}: {what}", path.display())).with_hint(
                "The file should be safetensors as Kyutai publishes it; if it was downloaded, \
                 delete it and download it again.",
            )
        };
        let file = File::open(path)
            .map_err(|e| EngineError::new(format!("{}: cannot be opened: {e}", path.display())))?;
        // SAFETY: the mapping is only read; a file that shrinks while it is mapped ends the
        // process, which is documented for operators (replace model files, never edit them).
        let map = unsafe { Mmap::map(&file) }
            .map_err(|e| EngineError::new(format!("{}: cannot be mapped: {e}", path.display())))?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(|e| match e {
            SafeTensorError::MetadataIncompleteBuffer => bad(format!(
                "its {} bytes are not what its header promises; it was cut off or changed",
                map.len()
            )),
            e => bad(format!("not a readable safetensors file: {e}")),
        })?;
        let data_start = HEADER_LENGTH_BYTES + header_len;
        Ok(Self { path: path.to_owned(), map, metadata, data_start })
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// A tensor's bytes as they are in the file.
    ///
    /// # Errors
    /// When it is missing, has another shape or is not made of floating-point numbers.
    pub(crate) fn raw(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'_>, EngineError> {
        let at = |what: String| EngineError::new(format!("{}: {what}", self.path.display()));
        let info = self.metadata.info(name).ok_or_else(|| {
            at(format!("tensor `{name}` is missing; expected shape {shape:?}")).with_hint(
                "Check that the file belongs to this model and that the `model` section of the \
                 configuration describes it.",
            )
        })?;
        if info.shape != shape {
            return Err(at(format!(
                "tensor `{name}`: expected shape {shape:?}, found {:?}",
                info.shape
            ))
            .with_hint(
                "The `model` section of the configuration and the file do not describe the same \
                 model.",
            ));
        }
        let precision = match info.dtype {
            Dtype::F32 => Precision::F32,
            Dtype::F16 => Precision::F16,
            Dtype::BF16 => Precision::Bf16,
            other => {
                return Err(at(format!(
                    "tensor `{name}`: expected numbers of type F32, F16 or BF16, found {other:?}"
                )));
            }
        };
        let (start, end) = info.data_offsets;
        let bytes = &self.map[self.data_start + start..self.data_start + end];
        Ok(RawTensor { checkpoint: self, bytes, precision })
    }

    /// Gives the file's pages back to the system, so that loading does not hold a tensor twice.
    #[cfg(unix)]
    fn release(&self, bytes: &[u8]) {
        let start = bytes.as_ptr() as usize - self.map.as_ptr() as usize;
        // SAFETY: the mapping is a file's and read-only, so dropped pages are read again when
        // somebody needs them.
        let released = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, bytes.len())
        };
        if let Err(error) = released {
            tracing::debug!(%error, "the system keeps the pages of a loaded tensor");
        }
    }
}

#[cfg(not(unix))]
impl Checkpoint {
    /// Other systems take a file's pages back by themselves when memory is short.
    fn release(&self, _bytes: &[u8]) {}
}

/// A tensor in its file. Its pages are given back when it is dropped.
pub(crate) struct RawTensor<'a> {
    checkpoint: &'a Checkpoint,
    bytes: &'a [u8],
    precision: Precision,
}

impl Drop for RawTensor<'_> {
    fn drop(&mut self) {
        self.checkpoint.release(self.bytes);
    }
}

impl RawTensor<'_> {
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// The number at `index`, counted in row-major order.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> f32 {
        match self.precision {
            Precision::F32 => {
                f32::from_le_bytes(std::array::from_fn(|i| self.bytes[4 * index + i]))
            }
            Precision::F16 => f16::from_le_bytes(self.two_bytes(index)).to_f32(),
            Precision::Bf16 => bf16::from_le_bytes(self.two_bytes(index)).to_f32(),
        }
    }

    #[inline]
    fn two_bytes(&self, index: usize) -> [u8; 2] {
        std::array::from_fn(|i| self.bytes[2 * index + i])
    }

    fn len(&self) -> usize {
        self.bytes.len() / self.precision.bytes()
    }

    pub(crate) fn to_f32(&self) -> Vec<f32> {
        (0..self.len()).map(|index| self.get(index)).collect()
    }

    /// The tensor in `precision` on `device`.
    pub(crate) fn to_tensor(
        &self,
        shape: &[usize],
        precision: Precision,
        device: &Device,
    ) -> Result<Tensor, EngineError> {
        let indices = 0..self.len();
        Ok(match precision {
            Precision::F32 => Tensor::from_vec(self.to_f32(), shape, device)?,
            Precision::F16 => {
                let numbers: Vec<_> = indices.map(|i| f16::from_f32(self.get(i))).collect();
                Tensor::from_vec(numbers, shape, device)?
            }
            Precision::Bf16 => {
                let numbers: Vec<_> = indices.map(|i| bf16::from_f32(self.get(i))).collect();
                Tensor::from_vec(numbers, shape, device)?
            }
        })
    }
}

/// candle's name for a precision.
pub(crate) fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
        Precision::Bf16 => DType::BF16,
    }
}
