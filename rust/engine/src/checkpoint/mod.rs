//! Model files by memory map, safetensors or GGUF, converted tensor by tensor.

mod format;
pub(crate) mod gguf;
mod raw;
mod safetensors;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use moshi_ctl_core::one_line;

use crate::EngineError;
pub(crate) use format::Format;
pub(crate) use raw::RawTensor;

/// An open model file.
pub(crate) struct Checkpoint {
    path: PathBuf,
    map: Mmap,
    container: Container,
    directory: Directory,
}

/// Tensors by name.
type Directory = BTreeMap<String, Entry>;

/// What a file says of a tensor.
#[derive(Debug, PartialEq)]
struct Entry {
    /// First dimension slowest.
    shape: Vec<usize>,
    /// The name of a format that is not read, where it is none of ours.
    format: Result<Format, String>,
    /// Where the numbers are in the file; just where they begin where the format is not known.
    range: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Container {
    Safetensors,
    Gguf,
}

impl Container {
    /// Whether a tensor of shape `found` in a file is one of shape `expected`. Writers of GGUF
    /// drop dimensions of one.
    fn same_shape(self, found: &[usize], expected: &[usize]) -> bool {
        let squeezed = |shape: &[usize]| -> Vec<usize> {
            shape.iter().copied().filter(|dim| *dim != 1).collect()
        };
        found == expected || (self == Self::Gguf && squeezed(found) == squeezed(expected))
    }

    /// What weights can be in it, for a hint.
    fn formats(self) -> &'static str {
        match self {
            Self::Safetensors => "F32, F16 or BF16",
            Self::Gguf => "F32, F16, BF16 or Q8_0",
        }
    }
}

impl Checkpoint {
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        let at =
            |what: String| EngineError::new(format!("{}: {}", path.display(), one_line(&what)));
        let file = File::open(path).map_err(|e| at(format!("cannot be opened: {e}")))?;
        // SAFETY: the mapping is only read; a file that shrinks while it is mapped ends the
        // process, which is documented for operators (replace model files, never edit them).
        let map = unsafe { Mmap::map(&file) }.map_err(|e| at(format!("cannot be mapped: {e}")))?;
        let (container, directory) = if map.starts_with(&gguf::MAGIC) {
            (Container::Gguf, gguf::read(&map))
        } else {
            (Container::Safetensors, safetensors::read(&map))
        };
        let directory = directory.map_err(|what| {
            at(what).with_hint(
                "The file should be safetensors as Kyutai publishes it, or GGUF with the same \
                 names; if it was downloaded, delete it and download it again.",
            )
        })?;
        Ok(Self { path: path.to_owned(), map, container, directory })
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.directory.contains_key(name)
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Numbers in all tensors.
    pub(crate) fn elements(&self) -> u64 {
        // Of a tensor that is not read nothing holds the shape against the file.
        let of = |entry: &Entry| {
            entry.shape.iter().fold(1, |product: u64, dim| product.saturating_mul(*dim as u64))
        };
        self.directory.values().fold(0, |sum, entry| sum.saturating_add(of(entry)))
    }

    /// Every tensor's name, in the order of their places in the file.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut entries: Vec<_> = self.directory.iter().collect();
        entries.sort_by_key(|(_, entry)| entry.range.start);
        entries.into_iter().map(|(name, _)| name.as_str()).collect()
    }

    /// A tensor as it is in the file, which should have `shape`.
    ///
    /// # Errors
    /// When it is missing, has another shape, is in a format that is not read or holds a number
    /// that is not finite.
    pub(crate) fn raw(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'_>, EngineError> {
        self.finite(name, self.expected(name, shape)?)
    }

    /// A tensor as it is in the file, whatever its shape.
    ///
    /// # Errors
    /// When it is missing, in a format that is not read or holds a number that is not finite.
    pub(crate) fn any(&self, name: &str) -> Result<RawTensor<'_>, EngineError> {
        self.finite(name, self.found(name)?)
    }

    /// The format of a tensor that should have `shape`. Reads none of its numbers.
    ///
    /// # Errors
    /// When it is missing, has another shape or is in a format that is not read.
    pub(crate) fn format(&self, name: &str, shape: &[usize]) -> Result<Format, EngineError> {
        self.readable(name, self.expected(name, shape)?)
    }

    /// The shape and format of a tensor. Reads none of its numbers.
    ///
    /// # Errors
    /// When it is missing or in a format that is not read.
    pub(crate) fn describe(&self, name: &str) -> Result<(&[usize], Format), EngineError> {
        let entry = self.found(name)?;
        Ok((&entry.shape, self.readable(name, entry)?))
    }

    fn found(&self, name: &str) -> Result<&Entry, EngineError> {
        let missing = || self.error(format!("tensor `{name}` is missing"));
        self.directory.get(name).ok_or_else(missing)
    }

    fn expected(&self, name: &str, shape: &[usize]) -> Result<&Entry, EngineError> {
        let entry = self.directory.get(name).ok_or_else(|| {
            self.error(format!("tensor `{name}` is missing; expected shape {shape:?}")).with_hint(
                "Check that the file belongs to this model and that the `model` section of the \
                 configuration describes it.",
            )
        })?;
        if !self.container.same_shape(&entry.shape, shape) {
            return Err(self
                .error(format!(
                    "tensor `{name}`: expected shape {shape:?}, found {:?}",
                    entry.shape
                ))
                .with_hint(
                    "The `model` section of the configuration and the file do not describe the \
                     same model.",
                ));
        }
        Ok(entry)
    }

    fn readable(&self, name: &str, entry: &Entry) -> Result<Format, EngineError> {
        entry.format.clone().map_err(|other| {
            self.error(format!("tensor `{name}` is {other}, which this engine does not read"))
                .with_hint(format!("use a file of {}", self.container.formats()))
        })
    }

    /// The one place where numbers are let in: one that is not finite would be an answer's, of
    /// every stream, as soon as the model steps.
    fn finite<'a>(&'a self, name: &str, entry: &'a Entry) -> Result<RawTensor<'a>, EngineError> {
        let format = self.readable(name, entry)?;
        let bytes = &self.map[entry.range.clone()];
        let raw = RawTensor { checkpoint: self, shape: &entry.shape, bytes, format };
        if !raw.is_finite() {
            return Err(self
                .error(format!("tensor `{name}` holds a value that is not finite"))
                .with_hint("the file is damaged; if it was downloaded, download it again"));
        }
        Ok(raw)
    }

    /// An error about this file.
    pub(crate) fn error(&self, what: impl std::fmt::Display) -> EngineError {
        EngineError::new(format!("{}: {}", self.path.display(), one_line(&what.to_string())))
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

#[cfg(test)]
mod tests;
