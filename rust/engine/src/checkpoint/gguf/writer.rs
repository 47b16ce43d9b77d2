use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, VERSION, types};
use crate::checkpoint::Format;

/// A metadata value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    U32(u32),
    Text(&'a str),
}

/// A tensor to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tensor<'a> {
    pub(crate) name: &'a str,
    /// First dimension slowest; at most [`super::MAX_DIMENSIONS`].
    pub(crate) shape: &'a [usize],
    pub(crate) format: Format,
}

impl Tensor<'_> {
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.format.bytes(self.elements())
    }
}

/// What precedes the numbers of `tensors`, which follow in this order, each with its
/// [`padding`].
pub(crate) fn header(metadata: &[(&str, Value<'_>)], tensors: &[Tensor<'_>]) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    u32(&mut header, VERSION);
    u64(&mut header, tensors.len());
    u64(&mut header, metadata.len() + 1);
    let alignment = (ALIGNMENT_KEY, Value::U32(DEFAULT_ALIGNMENT as u32));
    for (key, value) in metadata.iter().chain([&alignment]) {
        text(&mut header, key);
        match value {
            Value::U32(value) => {
                u32(&mut header, 4);
                u32(&mut header, *value);
            }
            Value::Text(value) => {
                u32(&mut header, 8);
                text(&mut header, value);
            }
        }
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut header, tensor.name);
        u32(&mut header, tensor.shape.len() as u32);
        tensor.shape.iter().rev().for_each(|dim| u64(&mut header, *dim));
        u32(&mut header, types::number(tensor.format));
        u64(&mut header, offset);
        offset += tensor.bytes() + padding(tensor.bytes()).len();
    }
    header.extend_from_slice(padding(header.len()));
    header
}

/// What `len` bytes need to end where the next tensor may begin.
pub(crate) fn padding(len: usize) -> &'static [u8] {
    &[0; DEFAULT_ALIGNMENT][..len.next_multiple_of(DEFAULT_ALIGNMENT) - len]
}

fn u32(header: &mut Vec<u8>, value: u32) {
    header.extend_from_slice(&value.to_le_bytes());
}

fn u64(header: &mut Vec<u8>, value: usize) {
    header.extend_from_slice(&(value as u64).to_le_bytes());
}

fn text(header: &mut Vec<u8>, value: &str) {
    u64(header, value.len());
    header.extend_from_slice(value.as_bytes());
}
