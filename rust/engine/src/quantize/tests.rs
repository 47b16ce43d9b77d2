use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::path::PathBuf;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, gguf_file};
use half::bf16;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use super::*;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("moshi-ctl-quantize-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type Tensors<'a> = Vec<(&'a str, Dtype, Vec<usize>)>;

/// The numbers of a tensor of a test, different in each.
fn numbers(name: &str, len: usize) -> Vec<f32> {
    let seed = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31) + u32::from(byte));
    (0..len as u32)
        .map(|i| {
            let x = (i ^ seed).wrapping_mul(2_654_435_761);
            // As bf16 has them, so that a file in it holds the same.
            bf16::from_f32((x >> 8) as f32 / (1 << 23) as f32 - 1.0).to_f32()
        })
        .collect()
}

fn write(file: &Path, tensors: &Tensors<'_>) {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, dtype, shape)| {
            let numbers = numbers(name, shape.iter().product());
            match dtype {
                Dtype::BF16 => {
                    numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
                }
                Dtype::I64 => vec![0; 8 * numbers.len()],
                _ => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            }
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    serialize_to_file(views, None, file).unwrap();
}

/// A language model with everything that can be in one; the last two matrices of the main
/// transformer are more than one piece, and one does not fit into blocks.
fn language_model() -> Tensors<'static> {
    vec![
        ("transformer.layers.0.self_attn.in_proj_weight", Dtype::BF16, vec![96, 32]),
        ("transformer.layers.0.gating.linear_in.weight", Dtype::BF16, vec![1025, 1024]),
        ("transformer.layers.0.gating.linear_out.weight", Dtype::F32, vec![33, 8192]),
        ("transformer.layers.0.odd.weight", Dtype::BF16, vec![4, 33]),
        ("transformer.layers.0.norm1.alpha", Dtype::BF16, vec![1, 1, 32]),
        ("transformer.layers.0.self_attn.in_proj_bias", Dtype::F32, vec![96]),
        ("depformer.0.linear_in.weight", Dtype::BF16, vec![64, 32]),
        ("depformer.0.emb.weight", Dtype::BF16, vec![9, 32]),
        ("text_linear.weight", Dtype::BF16, vec![3, 64]),
        ("linears.0.weight", Dtype::BF16, vec![3, 64]),
        ("text_emb.weight", Dtype::BF16, vec![5, 64]),
        ("emb.0.weight", Dtype::F32, vec![5, 64]),
        ("extra_heads.0.weight", Dtype::BF16, vec![6, 32]),
        ("out_norm.alpha", Dtype::F32, vec![1, 1, 32]),
        ("condition_provider.conditioners.delay.output_proj.weight", Dtype::BF16, vec![32, 32]),
    ]
}

const MATRICES: [&str; 6] = [
    "depformer.0.linear_in.weight",
    "linears.0.weight",
    "text_linear.weight",
    "transformer.layers.0.gating.linear_in.weight",
    "transformer.layers.0.gating.linear_out.weight",
    "transformer.layers.0.self_attn.in_proj_weight",
];

#[test]
fn candle_reads_names_types_and_numbers() {
    let folder = Folder::new("candle");
    let (input, output) = (folder.file("lm.v1.safetensors"), folder.file("q8.gguf"));
    write(&input, &language_model());
    let done = quantize(&input, &output).unwrap();
    assert_eq!((done.quantized, done.kept), (MATRICES.len(), 9));
    assert_eq!(done.bytes_in, fs::metadata(&input).unwrap().len());
    assert_eq!(done.bytes_out, fs::metadata(&output).unwrap().len());

    let mut file = BufReader::new(fs::File::open(&output).unwrap());
    let content = gguf_file::Content::read(&mut file).unwrap();
    let text = |key: &str| content.metadata[key].to_string().unwrap().clone();
    let number = |key: &str| content.metadata[key].to_u32().unwrap();
    assert_eq!(text("general.architecture"), "moshi");
    assert_eq!(text("general.name"), "lm.v1");
    assert_eq!(number("general.file_type"), 7);
    assert_eq!(number("general.quantization_version"), 2);
    assert_eq!(number("general.alignment"), 32);

    assert_eq!(content.tensor_infos.len(), language_model().len());
    for (name, dtype, shape) in language_model() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
        assert_eq!(tensor.shape().dims(), shape, "{name}");
        let expected = match dtype {
            _ if MATRICES.contains(&name) => GgmlDType::Q8_0,
            Dtype::BF16 => GgmlDType::BF16,
            _ => GgmlDType::F32,
        };
        assert_eq!(tensor.dtype(), expected, "{name}");
        let read = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
        let read: Vec<f32> = read.to_vec1().unwrap();
        let before = numbers(name, read.len());
        for (before, read) in before.chunks(BLOCK).zip(read.chunks(BLOCK)) {
            let largest = before.iter().fold(0f32, |most, x| most.max(x.abs()));
            // Half a step, and what f16 rounds off the scale.
            let most = if expected == GgmlDType::Q8_0 { largest / 127.0 * 0.5005 } else { 0.0 };
            for (before, read) in before.iter().zip(read) {
                assert!((before - read).abs() <= most, "{name}: {before} became {read}");
            }
        }
    }
}

#[test]
fn the_engine_reads_what_it_wrote() {
    let folder = Folder::new("round-trip");
    let (input, output) = (folder.file("lm.safetensors"), folder.file("q8.gguf"));
    write(&input, &language_model());
    quantize(&input, &output).unwrap();
    let (before, after) = (Checkpoint::open(&input).unwrap(), Checkpoint::open(&output).unwrap());
    assert_eq!(before.names(), after.names());
    for name in after.names() {
        let (before, after) = (before.any(name).unwrap(), after.any(name).unwrap());
        assert_eq!(before.shape(), after.shape());
        let expected: Vec<f32> = if MATRICES.contains(&name) {
            assert_eq!(after.format(), Format::Q8_0);
            let blocks = before.to_f32();
            let blocks = blocks.as_chunks().0.iter();
            blocks.flat_map(|numbers| quantization::quantize(numbers).unwrap().numbers()).collect()
        } else {
            assert_eq!((after.format(), after.bytes()), (before.format(), before.bytes()));
            before.to_f32()
        };
        assert!(after.to_f32() == expected, "{name}");
    }
}

#[test]
fn the_result_does_not_depend_on_threads_or_container() {
    let folder = Folder::new("same");
    let input = folder.file("lm.safetensors");
    write(&input, &language_model());
    let (many, one) = (folder.file("many"), folder.file("one"));
    quantize(&input, &many).unwrap();
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    alone.install(|| quantize(&input, &one)).unwrap();
    assert!(fs::read(&many).unwrap() == fs::read(&one).unwrap());

    // The same numbers from GGUF, one matrix of them quantized before.
    let checkpoint = Checkpoint::open(&input).unwrap();
    let quantized = Checkpoint::open(&many).unwrap();
    let early = "text_linear.weight";
    let tensors: Vec<_> = checkpoint
        .names()
        .into_iter()
        .map(|name| if name == early { &quantized } else { &checkpoint }.any(name).unwrap())
        .collect();
    let names = checkpoint.names();
    let infos: Vec<_> = names
        .iter()
        .zip(&tensors)
        .map(|(name, raw)| Tensor { name, shape: raw.shape(), format: raw.format() })
        .collect();
    let mut bytes = gguf::header(&[], &infos);
    for raw in &tensors {
        bytes.extend(raw.bytes());
        bytes.extend(gguf::padding(raw.bytes().len()));
    }
    let input = folder.file("lm.gguf");
    fs::write(&input, bytes).unwrap();
    let done = quantize(&input, &one).unwrap();
    assert_eq!((done.quantized, done.kept), (MATRICES.len() - 1, 10));
    assert!(fs::read(&many).unwrap() == fs::read(&one).unwrap());
}

#[test]
fn which_tensors_are_matrices() {
    let shape = &[64, 32];
    for name in [
        "transformer.layers.11.gating.linear_in.weight",
        "transformer.layers.0.linear1.weight",
        "transformer.layers.0.self_attn.out_proj.weight",
        "depformer.3.transformer.layers.0.self_attn.in_proj_weight",
        "depformer.3.linear_out.weight",
        "text_linear.weight",
        "linears.7.weight",
    ] {
        assert!(is_matrix(name, shape), "{name}");
        assert!(!is_matrix(name, &[32]) && !is_matrix(name, &[1, 1, 32]));
        assert!(!is_matrix(name, &[32, 48]) && !is_matrix(name, &[0, 32]));
    }
    for name in [
        "transformer",
        "text_emb.weight",
        "emb.3.weight",
        "depformer.3.emb.weight",
        "depformer.3.emb.low_rank.weight",
        "extra_heads.0.weight",
        "condition_provider.conditioners.delay.embed.weight",
        "encoder_transformer.transformer.layers.0.linear1.weight",
        "decoder_transformer.transformer.layers.0.linear1.weight",
        "text_linear.bias",
        "quantizer.rvq_first.input_proj.weight",
    ] {
        assert!(!is_matrix(name, shape), "{name}");
    }
}

/// The message of a file of `tensors` that is refused, its damage done by `change`.
fn refusal(name: &str, tensors: &Tensors<'_>, change: impl Fn(&mut Vec<u8>)) -> EngineError {
    let folder = Folder::new(name);
    let (input, output) = (folder.file("in.safetensors"), folder.file("out.gguf"));
    write(&input, tensors);
    let mut bytes = fs::read(&input).unwrap();
    change(&mut bytes);
    fs::write(&input, bytes).unwrap();
    let error = quantize(&input, &output).unwrap_err();
    assert_eq!(folder.names(), ["in.safetensors"], "something was left behind");
    assert!(error.to_string().contains("in.safetensors"), "{error}");
    error
}

#[test]
fn what_cannot_be_quantized_is_refused() {
    let matrix = ("transformer.x.weight", Dtype::F32, vec![2, 32]);
    let codec = vec![
        ("encoder.model.0.conv.conv.weight", Dtype::F32, vec![64, 32, 1]),
        ("encoder_transformer.transformer.layers.0.linear1.weight", Dtype::F32, vec![64, 32]),
    ];
    let error = refusal("codec", &codec, |_| ());
    assert!(error.to_string().contains("nothing to quantize: it has no matrix"), "{error}");
    assert!(error.hint().unwrap().contains("language model's file"));

    let ids = vec![matrix.clone(), ("transformer.ids", Dtype::I64, vec![4])];
    let error = refusal("ids", &ids, |_| ()).to_string();
    assert!(error.contains("`transformer.ids` is I64"), "{error}");

    let deep = vec![matrix.clone(), ("deep", Dtype::F32, vec![1; 5])];
    let error = refusal("deep", &deep, |_| ()).to_string();
    assert!(error.contains("`deep` has 5 dimensions"), "{error}");

    let two = vec![matrix, ("transformer.y.weight", Dtype::F32, vec![2, 32])];
    for (kind, number, says) in [
        ("nan", f32::NAN, "holds a value that is not finite"),
        ("infinite", f32::INFINITY, "holds a value that is not finite"),
        ("huge", 1e9, "has numbers that are too large for eight bits"),
    ] {
        let error = refusal(kind, &two, |bytes| {
            let at = bytes.len() - 8;
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        });
        let expected = format!("tensor `transformer.y.weight` {says}");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    let error = refusal("cut", &two, |bytes| bytes.truncate(bytes.len() - 1)).to_string();
    assert!(error.contains("cut off"), "{error}");
}

#[test]
fn a_result_is_not_quantized_again_nor_a_file_into_itself() {
    let folder = Folder::new("again");
    let (input, output) = (folder.file("lm.safetensors"), folder.file("q8.gguf"));
    write(&input, &language_model());
    quantize(&input, &output).unwrap();
    let before: BTreeMap<_, _> =
        [&input, &output].map(|file| (file.clone(), fs::read(file).unwrap())).into();
    let error = quantize(&output, &folder.file("more.gguf")).unwrap_err();
    assert!(error.to_string().contains("nothing to quantize: it is Q8_0 already"), "{error}");
    let error = quantize(&input, &folder.file("./lm.safetensors")).unwrap_err();
    assert!(error.to_string().contains("into itself"), "{error}");
    assert_eq!(folder.names().len(), 2);
    for (file, bytes) in before {
        assert!(fs::read(file).unwrap() == bytes);
    }
}
