//! Streams planned tensors into a safetensors file: the header first, then the data in order,
//! made in parallel a few chunks at a time, so that memory stays small whatever the model.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use moshi_ctl_core::Precision;
use rayon::prelude::*;

use super::{RandomOptions, Tensor, noise};
use crate::EngineError;

/// Writes `tensors` to `file` in the order of their names.
pub(super) fn write(
    file: &Path,
    tensors: &[Tensor],
    options: &RandomOptions,
) -> Result<(), EngineError> {
    let tensors: BTreeMap<&str, &Tensor> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    write_whole(file, |out| {
        let header = header(&tensors, options.precision);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors.values().try_for_each(|tensor| write_data(out, tensor, options))
    })
}

/// Lets `content` write a file that appears under its name only once it is complete.
pub(super) fn write_whole(
    file: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), EngineError> {
    let partial = partial_name(file);
    let written = File::create(&partial).and_then(|created| {
        let mut out = BufWriter::new(created);
        content(&mut out)?;
        out.flush()?;
        fs::rename(&partial, file)
    });
    written.map_err(|error| {
        // Nothing better can be done about a leftover than to try.
        let _ = fs::remove_file(&partial);
        EngineError::new(format!("cannot write {}: {error}", file.display()))
            .with_hint("the folder has to exist and to have room for the file")
    })
}

fn partial_name(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.partial", std::process::id()));
    file.with_file_name(name)
}

/// The header of the format: JSON, padded with blanks so that the data is aligned to 8 bytes.
fn header(tensors: &BTreeMap<&str, &Tensor>, precision: Precision) -> Vec<u8> {
    let dtype = match precision {
        Precision::F32 => "F32",
        Precision::F16 => "F16",
        Precision::Bf16 => "BF16",
    };
    let mut entries = serde_json::Map::new();
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + tensor.elements() * precision.bytes();
        let entry = serde_json::json!({
            "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end]
        });
        entries.insert((*name).to_owned(), entry);
        offset = end;
    }
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

fn write_data(
    out: &mut impl Write,
    tensor: &Tensor,
    options: &RandomOptions,
) -> std::io::Result<()> {
    let chunks = tensor.elements().div_ceil(noise::CHUNK_ELEMENTS);
    let at_once = 2 * rayon::current_num_threads();
    for first in (0..chunks).step_by(at_once) {
        let made: Vec<Vec<u8>> = (first..chunks.min(first + at_once))
            .into_par_iter()
            .map(|index| encode(&noise::chunk(tensor, index, options.seed), options.precision))
            .collect();
        made.iter().try_for_each(|bytes| out.write_all(bytes))?;
    }
    Ok(())
}

fn encode(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Precision::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Precision::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{Dtype, SafeTensors};

    fn written(precision: Precision, file: &Path) -> Vec<u8> {
        let tensors = [
            Tensor::noise("b.weight", &[3, 5], 1.0),
            Tensor::bias("a \"quoted\" name", 7),
            Tensor::noise("c", &[3, noise::CHUNK_ELEMENTS], 1.0),
        ];
        write(file, &tensors, &RandomOptions { seed: 3, precision }).unwrap();
        fs::read(file).unwrap()
    }

    #[test]
    fn the_file_is_valid_and_the_same_whatever_the_thread_count() {
        let folder = scratch("valid");
        for (precision, dtype) in [
            (Precision::F32, Dtype::F32),
            (Precision::Bf16, Dtype::BF16),
            (Precision::F16, Dtype::F16),
        ] {
            let file = folder.join(precision.name());
            let bytes = written(precision, &file);
            let read = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(read.len(), 3);
            let view = read.tensor("b.weight").unwrap();
            assert_eq!((view.shape(), view.dtype()), ([3, 5].as_slice(), dtype));
            let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert!(bytes == alone.install(|| written(precision, &file)), "depends on threads");
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "something was left behind");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn nothing_stays_when_writing_fails() {
        let folder = scratch("fails");
        let file = folder.join("model");
        let error = write_whole(&file, |out| {
            out.write_all(b"half")?;
            Err(std::io::Error::other("disk on fire"))
        });
        assert!(error.unwrap_err().to_string().contains("disk on fire"));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(folder).unwrap();
    }

    fn scratch(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("moshi-ctl-writer-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}
