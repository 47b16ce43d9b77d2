//! The directory of a GGUF file. Nothing in a file is trusted: every length is held against the
//! bytes that are left before anything is read or allocated.

use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS, types};
use crate::checkpoint::{Directory, Entry};

/// Arrays of arrays that are followed; real files have none.
const MAX_NESTING: usize = 4;

/// # Errors
/// What is wrong with the file.
pub(in crate::checkpoint) fn read(file: &[u8]) -> Result<Directory, String> {
    let mut cursor = Cursor { file, at: MAGIC.len() };
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(if matches!(version.swap_bytes(), 1..=3) {
            "a big-endian GGUF file; only little-endian ones are read".to_owned()
        } else {
            format!("GGUF version {version}; versions 2 and 3 are read")
        });
    }
    let tensors = cursor.u64()?;
    let mut alignment = DEFAULT_ALIGNMENT;
    for _ in 0..cursor.u64()? {
        let key = cursor.string()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0).map_err(|e| format!("metadata `{key}`: {e}"))?;
        if key == ALIGNMENT_KEY {
            alignment = value
                .and_then(|value| usize::try_from(value).ok())
                .filter(|value| value.is_power_of_two())
                .ok_or(format!("metadata `{key}` is not a power of two"))?;
        }
    }
    let mut infos = vec![];
    for _ in 0..tensors {
        infos.push(cursor.tensor_info()?);
    }
    let data_start = cursor
        .at
        .checked_next_multiple_of(alignment)
        .ok_or(format!("metadata `{ALIGNMENT_KEY}` is {alignment}"))?;
    let mut directory = Directory::new();
    for info in infos {
        let name = info.name;
        let entry = info.entry(file.len(), data_start, alignment);
        let entry = entry.map_err(|e| format!("tensor `{name}`: {e}"))?;
        if directory.insert(name.to_owned(), entry).is_some() {
            return Err(format!("tensor `{name}` is listed twice"));
        }
    }
    Ok(directory)
}

struct TensorInfo<'a> {
    name: &'a str,
    /// First dimension slowest.
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl TensorInfo<'_> {
    fn entry(&self, file_len: usize, data_start: usize, alignment: usize) -> Result<Entry, String> {
        let cut = |end: u64| {
            format!("it ends at byte {end}, but the file has {file_len}; it was cut off or changed")
        };
        let shape = &self.shape;
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(format!("offset {} is not a multiple of {alignment}", self.offset));
        }
        let start = self.offset.saturating_add(data_start as u64);
        let in_file = |end: u64| {
            usize::try_from(end).ok().filter(|end| *end <= file_len).ok_or_else(|| cut(end))
        };
        let format = types::format(self.kind);
        let Ok(known) = format else {
            let start = in_file(start)?;
            return Ok(Entry { shape: sizes(shape)?, format, range: start..start });
        };
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(known.block() as u64) {
            return Err(format!(
                "{} in rows of {row}, which is not a multiple of {}",
                known.name(),
                known.block()
            ));
        }
        // No format has less than a byte for a number, so this also keeps products in range.
        let elements = shape
            .iter()
            .try_fold(1u64, |product, dim| product.checked_mul(*dim))
            .filter(|elements| *elements <= file_len as u64)
            .ok_or_else(|| {
                format!(
                    "shape {shape:?} does not fit into the file's {file_len} bytes; it was cut off \
                     or changed"
                )
            })?;
        let bytes = known.bytes(elements as usize);
        let end = in_file(start.saturating_add(bytes as u64))?;
        Ok(Entry { shape: sizes(shape)?, format, range: end - bytes..end })
    }
}

fn sizes(shape: &[u64]) -> Result<Vec<usize>, String> {
    let sizes = shape.iter().map(|dim| usize::try_from(*dim)).collect::<Result<_, _>>();
    sizes.map_err(|_| format!("shape {shape:?} is too large"))
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], String> {
        let left = &self.file[self.at..];
        let taken = usize::try_from(len).ok().and_then(|len| left.get(..len)).ok_or_else(|| {
            format!(
                "its header needs {len} bytes at byte {}, but the file has {} bytes; it was cut \
                 off or changed",
                self.at,
                self.file.len()
            )
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N as u64)?;
        Ok(std::array::from_fn(|i| taken[i]))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let (len, at) = (self.u64()?, self.at);
        std::str::from_utf8(self.take(len)?)
            .map_err(|_| format!("the text at byte {at} is not UTF-8"))
    }

    /// Passes a metadata value of the type `kind`, inside of `depth` arrays. Returns it where it
    /// is an integer that is not negative.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Option<u64>, String> {
        Ok(match kind {
            // Unsigned and signed integers of one, two, four and eight bytes.
            0 => Some(self.array::<1>()?[0].into()),
            1 => self.array().map(i8::from_le_bytes)?.try_into().ok(),
            2 => Some(self.array().map(u16::from_le_bytes)?.into()),
            3 => self.array().map(i16::from_le_bytes)?.try_into().ok(),
            4 => Some(self.u32()?.into()),
            5 => self.array().map(i32::from_le_bytes)?.try_into().ok(),
            10 => Some(self.u64()?),
            11 => self.array().map(i64::from_le_bytes)?.try_into().ok(),
            // Numbers with a fraction, truth.
            6 => self.take(4).map(|_| None)?,
            12 => self.take(8).map(|_| None)?,
            7 => self.take(1).map(|_| None)?,
            TEXT => {
                // Whatever its encoding: nothing looks at it.
                let len = self.u64()?;
                self.take(len).map(|_| None)?
            }
            ARRAY => {
                self.values(depth)?;
                None
            }
            other => return Err(format!("a value of the unknown type {other}")),
        })
    }

    fn values(&mut self, depth: usize) -> Result<(), String> {
        if depth == MAX_NESTING {
            return Err(format!("arrays nested deeper than {MAX_NESTING}"));
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        if kind != ARRAY && kind != TEXT {
            // All of one size; the first tells which, without walking over a vocabulary.
            let before = self.at;
            if count > 0 {
                self.value(kind, depth + 1)?;
            }
            let size = (self.at - before) as u64;
            return self.take(count.saturating_sub(1).saturating_mul(size)).map(|_| ());
        }
        for _ in 0..count {
            self.value(kind, depth + 1)?;
        }
        Ok(())
    }

    fn tensor_info(&mut self) -> Result<TensorInfo<'a>, String> {
        let name = self.string()?;
        let dimensions = self.u32()? as usize;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!(
                "tensor `{name}` has {dimensions} dimensions; GGUF has at most {MAX_DIMENSIONS}"
            ));
        }
        let mut shape = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok(TensorInfo { name, shape, kind: self.u32()?, offset: self.u64()? })
    }
}

/// The types of metadata values that have no fixed size.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
