//! Streams planned tensors into a safetensors file: the header first, then the data in order,
//! made in parallel a few chunks at a time, so that memory stays small whatever the model.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use half::{bf16, f16};
use moshi_ctl_core::Precision;
use rayon::prelude::*;

use super::{RandomOptions, Tensor, noise};
use crate::checkpoint::Format;
use crate::{EngineError, whole_file};

/// Writes `tensors` to `file` in the order of their names.
pub(super) fn write(
    file: &Path,
    tensors: &[Tensor],
    options: &RandomOptions,
) -> Result<(), EngineError> {
    let encoding = Encoding::of(options.precision)?;
    let tensors: BTreeMap<&str, &Tensor> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    whole_file::write(file, |out| {
        let header = header(&tensors, encoding.format);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors.values().try_for_each(|tensor| write_data(out, tensor, encoding, options.seed))?;
        Ok(())
    })
}

/// The header of the format: JSON, padded with blanks so that the data is aligned to 8 bytes.
fn header(tensors: &BTreeMap<&str, &Tensor>, format: Format) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + format.bytes(tensor.elements());
        let entry = serde_json::json!({
            "dtype": format.name(), "shape": tensor.shape, "data_offsets": [offset, end]
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
    encoding: Encoding,
    seed: u64,
) -> std::io::Result<()> {
    let chunks = tensor.elements().div_ceil(noise::CHUNK_ELEMENTS);
    let at_once = 2 * rayon::current_num_threads();
    for first in (0..chunks).step_by(at_once) {
        let made: Vec<Vec<u8>> = (first..chunks.min(first + at_once))
            .into_par_iter()
            .map(|index| (encoding.encode)(&noise::chunk(tensor, index, seed)))
            .collect();
        made.iter().try_for_each(|bytes| out.write_all(bytes))?;
    }
    Ok(())
}

/// How numbers become bytes.
#[derive(Clone, Copy)]
struct Encoding {
    format: Format,
    encode: Encode,
}

type Encode = fn(&[f32]) -> Vec<u8>;

impl Encoding {
    fn of(precision: Precision) -> Result<Self, EngineError> {
        let (format, encode): (_, Encode) = match precision {
            Precision::F32 => (Format::F32, |v| v.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Precision::F16 => {
                (Format::F16, |v| v.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect())
            }
            Precision::Bf16 => (Format::Bf16, |v| {
                v.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
            }),
            Precision::Q8 => {
                return Err(EngineError::new("random checkpoints are not written in q8")
                    .with_hint("write bf16, then make it q8 with `moshi-ctl quantize`"));
            }
        };
        Ok(Self { format, encode })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use safetensors::{Dtype, SafeTensors};

    use super::*;

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
    fn q8_is_refused() {
        let folder = scratch("q8");
        let options = RandomOptions { seed: 3, precision: Precision::Q8 };
        let error = write(&folder.join("model"), &[Tensor::bias("a", 7)], &options).unwrap_err();
        assert!(error.to_string().contains("q8"));
        assert!(error.hint().unwrap().contains("moshi-ctl quantize"));
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
