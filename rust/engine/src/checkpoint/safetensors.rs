//! The directory of a safetensors file.

use ::safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::{Directory, Entry, Format};

/// Bytes of the length that precedes the header.
const HEADER_LENGTH_BYTES: usize = 8;

/// # Errors
/// What is wrong with the file.
pub(super) fn read(file: &[u8]) -> Result<Directory, String> {
    let (header_len, metadata) = SafeTensors::read_metadata(file).map_err(|e| match e {
        SafeTensorError::MetadataIncompleteBuffer => format!(
            "its {} bytes are not what its header promises; it was cut off or changed",
            file.len()
        ),
        e => format!("neither GGUF nor a readable safetensors file: {e}"),
    })?;
    let data_start = HEADER_LENGTH_BYTES + header_len;
    let entries = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let format = match info.dtype {
            Dtype::F32 => Ok(Format::F32),
            Dtype::F16 => Ok(Format::F16),
            Dtype::BF16 => Ok(Format::Bf16),
            other => Err(format!("{other:?}")),
        };
        let range = data_start + start..data_start + end;
        (name, Entry { shape: info.shape.clone(), format, range })
    });
    Ok(entries.collect())
}
