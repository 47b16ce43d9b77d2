use std::fs;

use half::{bf16, f16};

use moshi_ctl_core::Precision;

use super::*;
use crate::quantization::{self, BLOCK, Q8Block};

const F32: u32 = 0;
const F16: u32 = 1;
const Q4_K: u32 = 12;
const Q8_0: u32 = 8;
const BF16: u32 = 30;

/// The parts of a GGUF file, to be got wrong one at a time.
#[derive(Clone)]
struct Parts {
    version: u32,
    metadata: Vec<(&'static str, u32, Vec<u8>)>,
    /// Name, dimensions as the file lists them, type and offset.
    tensors: Vec<(&'static str, Vec<u64>, u32, u64)>,
    alignment: usize,
    data: Vec<u8>,
}

impl Parts {
    /// One tensor `x` of the numbers 0, 1, 2, … 63, two rows of 32, in F32.
    fn new() -> Self {
        Self {
            version: 3,
            metadata: vec![],
            tensors: vec![("x", vec![32, 2], F32, 0)],
            alignment: 32,
            data: counted().iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let text = |value: &str| -> Vec<u8> {
            [(value.len() as u64).to_le_bytes().as_slice(), value.as_bytes()].concat()
        };
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            file.extend(text(key));
            file.extend(kind.to_le_bytes());
            file.extend(value);
        }
        for (name, dims, kind, offset) in &self.tensors {
            file.extend(text(name));
            file.extend((dims.len() as u32).to_le_bytes());
            file.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend(offset.to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(&self.data);
        file
    }

    /// With `x` of other numbers.
    fn holding(kind: u32, data: Vec<u8>) -> Self {
        let mut parts = Self { data, ..Self::new() };
        parts.tensors[0].2 = kind;
        parts
    }
}

fn counted() -> Vec<f32> {
    (0..64u8).map(f32::from).collect()
}

/// Opens `bytes` as a file.
fn open(bytes: &[u8]) -> Result<Checkpoint, EngineError> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let name = format!("moshi-ctl-checkpoint-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    fs::write(&path, bytes).unwrap();
    let opened = Checkpoint::open(&path);
    fs::remove_file(&path).unwrap();
    opened
}

/// Asserts that `parts` are refused with the file's name and `expected`.
fn refused(parts: &Parts, expected: &str) {
    refused_bytes(&parts.bytes(), expected);
}

fn refused_bytes(bytes: &[u8], expected: &str) {
    let Err(error) = open(bytes) else { panic!("opened; expected {expected:?}") };
    let message = error.to_string();
    assert!(message.contains("moshi-ctl-checkpoint-"), "{message}");
    assert!(message.contains(expected), "{message:?} does not mention {expected:?}");
    assert!(error.hint().is_some());
}

#[test]
fn versions_two_and_three_are_read_with_dimensions_reversed() {
    for version in [2, 3] {
        let file = open(&Parts { version, ..Parts::new() }.bytes()).unwrap();
        assert!(file.contains("x") && !file.contains("y"));
        let raw = file.raw("x", &[2, 32]).unwrap();
        assert_eq!((raw.format(), raw.shape()), (Format::F32, [2, 32].as_slice()));
        assert_eq!(raw.to_f32(), counted());
    }
}

#[test]
fn every_format_reads_the_same_from_any_place() {
    let counted = counted();
    let blocks: Vec<Q8Block> = counted
        .as_chunks::<BLOCK>()
        .0
        .iter()
        .map(|numbers| quantization::quantize(numbers).unwrap())
        .collect();
    let quantized: Vec<f32> = blocks.iter().flat_map(Q8Block::numbers).collect();
    let parts = [
        (Parts::new(), Format::F32, &counted),
        (
            Parts::holding(
                F16,
                counted.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            ),
            Format::F16,
            &counted,
        ),
        (
            Parts::holding(
                BF16,
                counted.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            ),
            Format::Bf16,
            &counted,
        ),
        (
            Parts::holding(Q8_0, blocks.iter().flat_map(|b| b.to_bytes()).collect()),
            Format::Q8_0,
            &quantized,
        ),
    ];
    for (parts, format, expected) in parts {
        let file = open(&parts.bytes()).unwrap();
        let raw = file.raw("x", &[2, 32]).unwrap();
        assert_eq!(raw.format(), format);
        assert_eq!(raw.to_f32(), *expected);
        assert!(expected.iter().enumerate().all(|(i, x)| raw.get(i) == *x));
        for start in 0..=64 {
            for len in 0..=64 - start {
                let mut out = vec![f32::NAN; len];
                raw.read(start, &mut out);
                assert_eq!(out, expected[start..start + len], "{len} from {start}");
            }
        }
        let halves = raw.to_tensor(&[2, 32], Precision::F16, &candle_core::Device::Cpu).unwrap();
        let halves: Vec<f16> = halves.flatten_all().unwrap().to_vec1().unwrap();
        assert!(halves.iter().zip(expected).all(|(half, x)| *half == f16::from_f32(*x)));
        assert!(raw.to_tensor(&[2, 32], Precision::Q8, &candle_core::Device::Cpu).is_err());
        let found = raw.q8_blocks().map(<[_]>::to_vec);
        let stored =
            (format == Format::Q8_0).then(|| blocks.iter().map(|b| b.to_bytes()).collect());
        assert_eq!(found, stored);
    }
}

#[test]
fn dimensions_of_one_do_not_matter_in_gguf() {
    let mut parts = Parts::new();
    parts.tensors = vec![
        ("conv", vec![8, 4], F32, 0),
        ("norm", vec![16], F32, 0),
        ("padded", vec![16, 1, 1], F32, 0),
        ("scalar", vec![], F32, 0),
    ];
    let file = open(&parts.bytes()).unwrap();
    for (name, shape) in
        [("conv", [4, 8, 1].as_slice()), ("norm", &[1, 1, 16]), ("padded", &[16]), ("scalar", &[1])]
    {
        assert!(file.raw(name, shape).is_ok(), "{name}");
    }
    let Err(error) = file.raw("conv", &[8, 4]) else { panic!("transposed") };
    assert!(error.to_string().ends_with("tensor `conv`: expected shape [8, 4], found [4, 8]"));
    let Err(error) = file.raw("none", &[2]) else { panic!("found") };
    assert!(error.to_string().ends_with("tensor `none` is missing; expected shape [2]"));
}

#[test]
fn other_formats_are_refused_when_asked_for() {
    let mut parts = Parts::new();
    parts.tensors.extend([("k", vec![256], Q4_K, 0), ("new", vec![256], 77, 32)]);
    let file = open(&parts.bytes()).unwrap();
    assert!(file.raw("x", &[2, 32]).is_ok());
    for (name, called) in [("k", "`k` is Q4_K,"), ("new", "`new` is of type 77,")] {
        let Err(error) = file.raw(name, &[256]) else { panic!("{name} was read") };
        assert!(error.to_string().contains(called), "{error}");
        assert_eq!(error.hint(), Some("use a file of F32, F16, BF16 or Q8_0"));
    }
}

#[test]
fn sizes_of_tensors_that_are_not_read_may_be_anything() {
    let mut parts = Parts::new();
    parts.tensors.push(("k", vec![u64::MAX, 3], Q4_K, 0));
    assert_eq!(open(&parts.bytes()).unwrap().elements(), u64::MAX);
}

#[test]
fn a_number_that_is_not_finite_is_refused_in_every_format() {
    let (nan, infinity) = (f32::NAN, f32::NEG_INFINITY);
    let half = |x: f32| f16::from_f32(x).to_le_bytes().to_vec();
    let cases = [
        (F32, 4, 63, nan.to_le_bytes().to_vec()),
        (F32, 4, 0, infinity.to_le_bytes().to_vec()),
        (F16, 2, 17, half(nan)),
        (F16, 2, 63, half(infinity)),
        (BF16, 2, 31, bf16::from_f32(nan).to_le_bytes().to_vec()),
        (BF16, 2, 0, bf16::from_f32(infinity).to_le_bytes().to_vec()),
        (Q8_0, quantization::BLOCK_BYTES, 1, half(nan)),
        (Q8_0, quantization::BLOCK_BYTES, 0, half(infinity)),
    ];
    for (kind, size, at, number) in cases {
        let block = if kind == Q8_0 { BLOCK } else { 1 };
        let mut parts = Parts::holding(kind, vec![0x7b; 64 / block * size]);
        parts.data.resize(parts.data.len() + 32, 0xff);
        let file = open(&parts.bytes()).unwrap();
        assert!(file.raw("x", &[2, 32]).is_ok() && file.any("x").is_ok(), "type {kind}");

        parts.data[at * size..][..number.len()].copy_from_slice(&number);
        let file = open(&parts.bytes()).unwrap();
        for read in [file.raw("x", &[2, 32]), file.any("x")] {
            let Err(error) = read else { panic!("type {kind} was read") };
            let message = error.to_string();
            assert!(message.contains("moshi-ctl-checkpoint-"), "{message}");
            assert!(message.ends_with(": tensor `x` holds a value that is not finite"));
            assert!(error.hint().unwrap().contains("download it again"));
        }
        // What reads no number does not mind.
        assert!(file.format("x", &[2, 32]).is_ok() && file.describe("x").is_ok());
    }
}

#[test]
fn a_number_that_is_not_finite_is_found_anywhere_in_a_large_tensor() {
    const LEN: usize = 600_000;
    let mut parts = Parts::holding(BF16, vec![0; 2 * LEN]);
    parts.tensors[0].1 = vec![LEN as u64];
    for at in [0, 1, (1 << 18) - 1, 1 << 18, LEN - 1] {
        assert!(open(&parts.bytes()).unwrap().raw("x", &[LEN]).is_ok());
        parts.data[2 * at..][..2].copy_from_slice(&bf16::INFINITY.to_le_bytes());
        assert!(open(&parts.bytes()).unwrap().raw("x", &[LEN]).is_err(), "number {at}");
        parts.data[2 * at..][..2].fill(0);
    }
}

#[test]
fn metadata_of_every_type_is_passed() {
    let text = |value: &str| [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat();
    let array = |kind: u32, count: u64, values: &[u8]| {
        [kind.to_le_bytes().as_slice(), &count.to_le_bytes(), values].concat()
    };
    let mut parts = Parts::new();
    let sizes = [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8)];
    for (kind, size) in sizes.into_iter().chain([(12, 8)]) {
        parts.metadata.push(("number", kind, vec![1; size]));
        parts.metadata.push(("numbers", 9, array(kind, 3, &vec![1; 3 * size])));
        parts.metadata.push(("none", 9, array(kind, 0, &[])));
    }
    parts.metadata.push(("text", 8, text("héé")));
    parts.metadata.push(("texts", 9, array(8, 2, &[text("a"), text("bc")].concat())));
    let inner = [array(0, 2, &[1, 2]), array(8, 1, &text("d"))].concat();
    parts.metadata.push(("nested", 9, array(9, 2, &inner)));
    assert_eq!(open(&parts.bytes()).unwrap().any("x").unwrap().to_f32(), counted());

    parts.metadata.push(("strange", 13, vec![0; 8]));
    refused(&parts, "metadata `strange`: a value of the unknown type 13");
}

#[test]
fn alignment_is_the_file_s() {
    for (kind, value) in [(4u32, 128u32.to_le_bytes().to_vec()), (2, vec![128, 0]), (0, vec![128])]
    {
        let metadata = vec![("general.alignment", kind, value)];
        let mut parts = Parts { metadata, alignment: 128, ..Parts::new() };
        parts.tensors.push(("y", vec![32], F32, 128));
        let file = open(&parts.bytes()).unwrap();
        assert_eq!(file.raw("y", &[32]).unwrap().to_f32(), counted()[32..]);
        parts.tensors.push(("z", vec![8], F32, 96));
        refused(&parts, "tensor `z`: offset 96 is not a multiple of 128");
    }
    for value in [0u32, 48, u32::MAX] {
        let metadata = vec![("general.alignment", 4, value.to_le_bytes().to_vec())];
        refused(&Parts { metadata, ..Parts::new() }, "`general.alignment` is not a power of two");
    }
    let metadata = vec![("general.alignment", 10, (1u64 << 63).to_le_bytes().to_vec())];
    refused(&Parts { metadata, ..Parts::new() }, "cut off");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = Parts {
        metadata: vec![(
            "numbers",
            9,
            [&4u32.to_le_bytes()[..], &[2, 0, 0, 0, 0, 0, 0, 0], &[7; 8]].concat(),
        )],
        ..Parts::new()
    }
    .bytes();
    for len in 0..whole.len() {
        refused_bytes(&whole[..len], if len < 4 { "neither GGUF nor" } else { "cut off" });
    }
    assert!(open(&whole).is_ok());
}

#[test]
fn headers_that_lie_are_refused() {
    let with = |change: fn(&mut Parts)| {
        let mut parts = Parts::new();
        change(&mut parts);
        parts
    };
    refused(&with(|p| p.version = 1), "GGUF version 1; versions 2 and 3 are read");
    refused(&with(|p| p.version = 4), "GGUF version 4");
    refused(&with(|p| p.version = 3u32.swap_bytes()), "big-endian");
    refused(&with(|p| p.tensors.push(p.tensors[0].clone())), "tensor `x` is listed twice");
    refused(&with(|p| p.tensors[0].3 = 1), "offset 1 is not a multiple of 32");
    refused(&with(|p| p.tensors[0].3 = 32), "ends at byte");
    refused(&with(|p| p.tensors[0].3 = 1 << 40), "ends at byte");
    refused(&with(|p| p.tensors[0].3 = u64::MAX - 31), "ends at byte");
    refused(&with(|p| p.tensors[0].1 = vec![1 << 32, 1 << 32]), "does not fit");
    refused(&with(|p| p.tensors[0].1 = vec![u64::MAX]), "does not fit");
    refused(&with(|p| p.tensors[0].1 = vec![1; 5]), "has 5 dimensions");
    refused(&with(|p| p.tensors[0].1 = vec![65]), "ends at byte");
    refused(
        &with(|p| p.tensors[0] = ("x", vec![48, 2], Q8_0, 0)),
        "tensor `x`: Q8_0 in rows of 48, which is not a multiple of 32",
    );
    refused(&with(|p| p.tensors[0] = ("x", vec![256], Q4_K, 1 << 40)), "ends at byte");

    let nested = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat().repeat(100);
    refused(
        &with(|p| p.metadata.push(("deep", 9, vec![]))).adding(&nested),
        "metadata `deep`: arrays nested deeper than 4",
    );
    for kind in [0u32, 8, 9, 10] {
        let endless = [kind.to_le_bytes().as_slice(), &u64::MAX.to_le_bytes()].concat();
        refused(
            &with(|p| p.metadata.push(("long", 9, vec![]))).adding(&endless),
            "metadata `long`",
        );
    }

    // Counts and lengths beyond anything, in place.
    let lying = |at: usize, value: u64| {
        let mut bytes = Parts::new().bytes();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for value in [1 << 20, 1 << 62, u64::MAX] {
        assert!(open(&lying(8, value)).is_err(), "{value} tensors");
        assert!(open(&lying(16, value)).is_err(), "{value} metadata");
        refused_bytes(&lying(24, value), "cut off");
    }
    let mut bytes = Parts::new().bytes();
    bytes[32] = 0xff;
    refused_bytes(&bytes, "the text at byte 32 is not UTF-8");
}

impl Parts {
    fn adding(mut self, value: &[u8]) -> Self {
        if let Some((_, _, last)) = self.metadata.last_mut() {
            last.extend(value);
        }
        self
    }
}

#[test]
fn no_byte_changed_in_a_header_is_more_than_an_error() {
    let parts = Parts { metadata: vec![("a", 4, vec![1, 0, 0, 0])], ..Parts::new() };
    let whole = parts.bytes();
    for at in 0..whole.len() - parts.data.len() {
        for value in [0, 1, 9, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(file) = open(&bytes) {
                for name in file.names() {
                    if let Ok(raw) = file.any(name) {
                        assert_eq!(raw.to_f32().len(), raw.len());
                    }
                }
            }
        }
    }
}

#[test]
fn safetensors_keep_their_dimensions_of_one() {
    use ::safetensors::tensor::{Dtype, TensorView, serialize};
    let data: Vec<u8> = counted().iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = |dtype, shape: &[usize]| TensorView::new(dtype, shape.to_vec(), &data).unwrap();
    let bytes =
        serialize([("x", view(Dtype::F32, &[1, 64])), ("ids", view(Dtype::I64, &[32]))], None)
            .unwrap();
    let file = open(&bytes).unwrap();
    assert_eq!(file.raw("x", &[1, 64]).unwrap().to_f32(), counted());
    assert!(file.raw("x", &[64]).is_err());
    let Err(error) = file.raw("ids", &[32]) else { panic!("integers were read") };
    assert!(error.to_string().ends_with("tensor `ids` is I64, which this engine does not read"));
    assert_eq!(error.hint(), Some("use a file of F32, F16 or BF16"));
}
