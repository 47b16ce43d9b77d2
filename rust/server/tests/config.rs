//! What a configuration may say, and what people are told when it says something else.
#![allow(clippy::unwrap_used, reason = "a test's helper may panic as a test does")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moshi_ctl_core::{DeviceName, Precision};
use moshi_ctl_server::config::{BatchSize, Config, ConfigError, ModuleConfig, Sizing};

/// The 1B model's module as Kyutai publishes it; what differs between files is added or replaced.
const PUBLISHED_1B: &str = r#"static_dir = "./static/"
log_dir = "$HOME/tmp/tts-logs"
instance_name = "tts"
authorized_ids = ["public_token"]

[modules.asr]
path = "/api/asr-streaming"
type = "BatchedAsr"
lm_model_file = "hf://kyutai/stt-1b-en_fr-candle/model.safetensors"
text_tokenizer_file = "hf://kyutai/stt-1b-en_fr-candle/tokenizer_en_fr_audio_8000.model"
audio_tokenizer_file = "hf://kyutai/stt-1b-en_fr-candle/mimi-pytorch-e351c8d8@125.safetensors"
asr_delay_in_tokens = 6
batch_size = 64
conditioning_learnt_padding = true
temperature = 0.0

[modules.asr.model]
audio_vocab_size = 2049
text_in_vocab_size = 8001
text_out_vocab_size = 8000
audio_codebooks = 32

[modules.asr.model.transformer]
d_model = 2048
num_heads = 16
num_layers = 16
dim_feedforward = 8192
causal = true
norm_first = true
bias_ff = false
bias_attn = false
context = 750
max_period = 100000
use_conv_block = false
use_conv_bias = true
gating = "silu"
norm = "RmsNorm"
positional_embedding = "Rope"
conv_layout = false
conv_kernel_size = 3
kv_repeat = 1
max_seq_len = 40960

[modules.asr.model.extra_heads]
num_heads = 4
dim = 6
"#;

const DELAY_CONDITIONER: &str = "
[modules.asr.model.conditioners.delay]
type = \"ContinuousAttribute\"
dim = 16
scale_factor = 10.0
max_period = 10000.0
";

fn parse(text: &str) -> Result<Config, ConfigError> {
    let env = |name: &str| (name == "HOME").then(|| "/home/somebody".to_string());
    Config::parse(text, Path::new("config.toml"), env)
}

fn module(text: &str) -> ModuleConfig {
    parse(text).unwrap().modules.remove("asr").unwrap()
}

/// `text` with one line replaced, or lines added after it.
fn with(text: &str, line: &str, new: &str) -> String {
    assert!(text.contains(line), "{line}");
    text.replacen(line, new, 1)
}

#[test]
fn published_speech_to_text_configurations_load() {
    let heads = "\n[modules.asr.model.extra_heads]\nnum_heads = 4\ndim = 6\n";
    let large = PUBLISHED_1B
        .replace("stt-1b-en_fr-candle", "stt-2.6b-en-candle")
        .replace("asr_delay_in_tokens = 6", "asr_delay_in_tokens = 32")
        .replace("batch_size = 64", "batch_size = 16")
        .replace("temperature = 0.0", "temperature = 0")
        .replace("8001", "4001")
        .replace("8000\n", "4000\n")
        .replace("num_heads = 16", "num_heads = 32")
        .replace("num_layers = 16", "num_layers = 48")
        .replace("context = 750", "context = 375")
        .replace(heads, "");
    let unmute = PUBLISHED_1B
        .replace("$HOME/tmp/tts-logs", "/tmp/unmute_logs")
        .replace("temperature = 0.0", "temperature = 0.25")
        .replace("audio_codebooks = 32", "audio_codebooks = 20");
    let unmute_small = unmute.replace("batch_size = 64", "batch_size = 1");
    for (text, delay, lanes, heads) in [
        (PUBLISHED_1B, 6, 64, true),
        (&large, 32, 16, false),
        (&unmute, 6, 64, true),
        (&unmute_small, 6, 1, true),
    ] {
        let module = module(text);
        assert_eq!(module.delay_in_tokens(), delay);
        assert_eq!(module.asr().batch_size, BatchSize::Lanes(lanes));
        assert_eq!(module.asr().model.extra_heads.is_some(), heads);
    }
}

#[test]
fn defaults_and_environment() {
    let config = parse(PUBLISHED_1B).unwrap();
    assert_eq!(config.log_dir, "/home/somebody/tmp/tts-logs");
    assert!(config.warmup.enabled);
    let text = with(PUBLISHED_1B, "batch_size = 64\n", "dtype_override = \"bf16\"\n");
    let text = with(&text, "type = \"BatchedAsr\"", "type = \"Asr\"");
    let text = with(&text, "authorized_ids = [\"public_token\"]", "warmup = { enabled = false }");
    let config = parse(&text).unwrap();
    assert!(config.authorized_ids.is_empty());
    assert!(!config.warmup.enabled);
    let asr = config.modules["asr"].asr();
    assert_eq!((asr.batch_size, asr.precision), (BatchSize::Lanes(8), Some(Precision::Bf16)));
}

#[test]
fn lanes_and_devices_may_be_left_to_the_controller() {
    let auto = module(&with(PUBLISHED_1B, "batch_size = 64", "batch_size = \"auto\""));
    assert_eq!((auto.asr().batch_size, auto.asr().device), (BatchSize::Auto, None));
    let device = |line: &str| module(&with(PUBLISHED_1B, "temperature = 0.0", line)).asr().device;
    assert_eq!(device("device = \"auto\""), None);
    assert_eq!(device("device = \"cuda:1\""), Some(DeviceName::Cuda(1)));
    assert_eq!(device("backend = \"cuda\""), Some(DeviceName::Cuda(0)));
    let of_all = with(PUBLISHED_1B, "instance_name", "backend = \"cuda\"\ninstance_name");
    assert_eq!(module(&of_all).asr().device, Some(DeviceName::Cuda(0)));
    let one_of_all = with(&of_all, "temperature = 0.0", "device = \"cpu\"");
    assert_eq!(module(&one_of_all).asr().device, Some(DeviceName::Cpu));
    let summary = parse(&of_all).unwrap().summary_json();
    assert_eq!(summary["modules"]["asr"]["device"], "cuda:0");
    assert_eq!(summary["modules"]["asr"]["batch_size"], 64);
}

#[test]
fn sizing_has_defaults() {
    assert_eq!(parse(PUBLISHED_1B).unwrap().sizing, Sizing::default());
    let section = "[sizing]\nreserve_mb = 1000\nestimate = false\nreal_time = false\n[modules.asr]";
    let sizing = parse(&with(PUBLISHED_1B, "[modules.asr]", section)).unwrap().sizing;
    let expected = Sizing { reserve_mb: Some(1000), estimate: false, real_time: false };
    assert_eq!(sizing, expected);
}

#[test]
fn precisions_are_those_of_the_engine_or_left_to_it() {
    let added = |keys: &str| {
        module(&with(PUBLISHED_1B, "temperature = 0.0", &format!("temperature = 0.0\n{keys}")))
    };
    for precision in Precision::ALL {
        for key in ["precision", "dtype_override"] {
            let asr = added(&format!("{key} = \"{precision}\"")).asr().clone();
            assert_eq!((asr.precision, asr.kv_precision), (Some(precision), None), "{key}");
        }
        let asr = added(&format!("kv_precision = \"{precision}\"")).asr().clone();
        assert_eq!((asr.precision, asr.kv_precision), (None, Some(precision)));
        // Twice the same is no contradiction.
        let both = format!("dtype_override = \"{precision}\"\nprecision = \"{precision}\"");
        assert_eq!(added(&both).asr().precision, Some(precision));
        // `auto` says nothing, so Kyutai's key holds.
        let auto = format!("dtype_override = \"{precision}\"\nprecision = \"auto\"");
        assert_eq!(added(&auto).asr().precision, Some(precision));
    }
    for nothing in ["", "precision = \"auto\"\nkv_precision = \"auto\""] {
        let asr = added(nothing).asr().clone();
        assert_eq!((asr.precision, asr.kv_precision), (None, None), "{nothing}");
    }
}

#[test]
fn the_summary_shows_precisions() {
    let keys = "dtype_override = \"f16\"\nkv_precision = \"q8\"\nbatch_size = 64";
    let summary = parse(&with(PUBLISHED_1B, "batch_size = 64", keys)).unwrap().summary_json();
    let asr = &summary["modules"]["asr"];
    assert_eq!(asr["precision"], "f16");
    assert_eq!(asr["kv_precision"], "q8");
    let summary = parse(PUBLISHED_1B).unwrap().summary_json();
    assert!(summary["modules"]["asr"]["precision"].is_null());
}

#[test]
fn a_conditioned_delay_decides_for_batched_asr_only() {
    let text = with(PUBLISHED_1B, "conditioning_learnt_padding = true", "conditioning_delay = 1.0")
        + DELAY_CONDITIONER;
    assert_eq!(module(&text).delay_in_tokens(), 13);
    let text = with(&text, "type = \"BatchedAsr\"", "type = \"Asr\"");
    assert_eq!(module(&text).delay_in_tokens(), 6);
}

/// A configuration that is wrong, and what has to be said about it.
struct Wrong {
    line: &'static str,
    new: &'static str,
    key: &'static str,
    at: usize,
    says: &'static str,
    hints: &'static str,
}

#[rustfmt::skip]
const WRONG: &[Wrong] = &[
    Wrong { line: "log_dir", new: "log_dri", key: "log_dri", at: 2, says: "unknown key", hints: "did you mean `log_dir`?" },
    Wrong { line: "[modules.asr]", new: "[module.asr]", key: "module", at: 6, says: "unknown key", hints: "did you mean `modules`?" },
    Wrong { line: "batch_size = 64", new: "batchsize = 64", key: "modules.asr.batchsize", at: 13, says: "unknown key", hints: "did you mean `batch_size`?" },
    Wrong { line: "num_layers = 16", new: "nun_layers = 16", key: "modules.asr.model.transformer.nun_layers", at: 26, says: "unknown key", hints: "did you mean `num_layers`?" },
    Wrong { line: "batch_size = 64", new: "frobnicate = 64", key: "modules.asr.frobnicate", at: 13, says: "unknown key", hints: "possible here: path, lm_model_file" },
    Wrong { line: "batch_size = 64\n", new: "", key: "modules.asr.batch_size", at: 6, says: "is missing", hints: "streams" },
    Wrong { line: "lm_model_file = \"hf://kyutai/stt-1b-en_fr-candle/model.safetensors\"\n", new: "", key: "modules.asr.lm_model_file", at: 6, says: "is missing", hints: "add it" },
    Wrong { line: "instance_name = \"tts\"\n", new: "", key: "instance_name", at: 0, says: "is missing", hints: "add it" },
    Wrong { line: "batch_size = 64", new: "batch_size = \"64\"", key: "modules.asr.batch_size", at: 13, says: "string \"64\", expected a whole number", hints: "" },
    Wrong { line: "batch_size = 64", new: "batch_size = -1", key: "modules.asr.batch_size", at: 13, says: "`-1`", hints: "" },
    Wrong { line: "batch_size = 64", new: "batch_size = 0", key: "modules.asr.batch_size", at: 13, says: "is 0", hints: "streams" },
    Wrong { line: "batch_size = 64", new: "batch_size = 1000000", key: "modules.asr.batch_size", at: 13, says: "is 1000000", hints: "streams" },
    Wrong { line: "batch_size = 64", new: "batch_size = \"automatic\"", key: "modules.asr.batch_size", at: 13, says: "or \"auto\"", hints: "" },
    Wrong { line: "temperature = 0.0", new: "device = \"gpu\"", key: "modules.asr.device", at: 15, says: "`gpu` is not a device: use cpu, cuda, cuda:N or metal", hints: "" },
    Wrong { line: "instance_name = \"tts\"", new: "instance_name = \"tts\"\ndevice = \"cuda:x\"", key: "device", at: 4, says: "`cuda:x`", hints: "" },
    Wrong { line: "[modules.asr]", new: "[sizing]\nreserve_mb = -5\n[modules.asr]", key: "sizing.reserve_mb", at: 7, says: "`-5`", hints: "" },
    Wrong { line: "[modules.asr]", new: "[sizing]\nreserve_mb = 99999999\n[modules.asr]", key: "sizing.reserve_mb", at: 7, says: "at most 1048576", hints: "512" },
    Wrong { line: "[modules.asr]", new: "[sizing]\nreserve = 5\n[modules.asr]", key: "sizing.reserve", at: 7, says: "unknown key", hints: "reserve_mb" },
    Wrong { line: "num_layers = 16", new: "num_layers = 16000000000", key: "modules.asr.model.transformer.num_layers", at: 26, says: "is 16000000000, but can be at most 1024", hints: "" },
    Wrong { line: "audio_codebooks = 32", new: "audio_codebooks = 4000000000000", key: "modules.asr.model.audio_codebooks", at: 21, says: "can be at most 1024", hints: "" },
    Wrong { line: "audio_codebooks = 32", new: "audio_codebooks = 32\ncodec = { n_residual_layers = 999 }", key: "modules.asr.model.codec.n_residual_layers", at: 22, says: "at most 4", hints: "" },
    Wrong { line: "context = 750", new: "context = 75000000", key: "modules.asr.model.transformer.context", at: 32, says: "is 75000000", hints: "" },
    Wrong { line: "temperature = 0.0", new: "temperature = -0.5", key: "modules.asr.temperature", at: 15, says: "is -0.5", hints: "likeliest" },
    Wrong { line: "temperature = 0.0", new: "temperature = nan", key: "modules.asr.temperature", at: 15, says: "is NaN", hints: "likeliest" },
    Wrong { line: "temperature = 0.0", new: "temperature = 0.0\ndtype_override = \"f8\"", key: "modules.asr.dtype_override", at: 16, says: "`f8`", hints: "did you mean `q8`?" },
    Wrong { line: "temperature = 0.0", new: "temperature = 0.0\nprecision = \"bf61\"", key: "modules.asr.precision", at: 16, says: "`bf61`", hints: "did you mean `bf16`?" },
    Wrong { line: "temperature = 0.0", new: "temperature = 0.0\nprecision = \"float16\"", key: "modules.asr.precision", at: 16, says: "`float16`", hints: "possible here: auto, f32, f16, bf16, q8" },
    Wrong { line: "temperature = 0.0", new: "temperature = 0.0\nprecision = 8", key: "modules.asr.precision", at: 16, says: "expected a string", hints: "" },
    Wrong { line: "temperature = 0.0", new: "temperature = 0.0\nkv_precision = \"q4\"", key: "modules.asr.kv_precision", at: 16, says: "`q4`", hints: "did you mean `q8`?" },
    Wrong { line: "temperature = 0.0", new: "temperature = 0.0\ndtype_override = \"f32\"\nprecision = \"q8\"", key: "modules.asr.precision", at: 17, says: "is q8, but `dtype_override` is f32", hints: "remove `dtype_override`" },
    Wrong { line: "gating = \"silu\"", new: "gating = \"silo\"", key: "modules.asr.model.transformer.gating", at: 36, says: "`silo`", hints: "did you mean `silu`?" },
    Wrong { line: "\"BatchedAsr\"", new: "\"BatchAsr\"", key: "modules.asr.type", at: 8, says: "`BatchAsr`", hints: "did you mean `BatchedAsr`?" },
    Wrong { line: "\"BatchedAsr\"", new: "\"Tts\"", key: "modules.asr.type", at: 8, says: "not served by this version", hints: "BatchedAsr" },
    Wrong { line: "type = \"BatchedAsr\"\n", new: "", key: "modules.asr.type", at: 6, says: "is missing", hints: "BatchedAsr" },
    Wrong { line: "\"/api/asr-streaming\"", new: "\"api/asr-streaming\"", key: "modules.asr.path", at: 7, says: "start with `/`", hints: "`/api/asr-streaming`" },
    Wrong { line: "\"/api/asr-streaming\"", new: "\"/metrics\"", key: "modules.asr.path", at: 7, says: "the server itself", hints: "another path" },
    Wrong { line: "\"/api/asr-streaming\"", new: "\"/api/{x}\"", key: "modules.asr.path", at: 7, says: "'{'", hints: "letters" },
    Wrong { line: "num_heads = 16", new: "num_heads = 15", key: "modules.asr.model.transformer.num_heads", at: 25, says: "is 15", hints: "" },
    Wrong { line: "kv_repeat = 1", new: "kv_repeat = 2", key: "modules.asr.model.transformer.kv_repeat", at: 41, says: "only 1", hints: "" },
    Wrong { line: "$HOME", new: "$HOEM", key: "log_dir", at: 2, says: "$HOEM", hints: "set HOEM" },
    Wrong { line: "hf://kyutai/stt-1b-en_fr-candle/model.safetensors", new: "hf://model.safetensors", key: "modules.asr.lm_model_file", at: 9, says: "repository", hints: "hf://org/repository/file" },
    Wrong { line: "instance_name = \"tts\"", new: "instance_name = \"a/b\"", key: "instance_name", at: 3, says: "a/b", hints: "slashes" },
    Wrong { line: "authorized_ids = [\"public_token\"]", new: "authorized_ids = [\"\"]", key: "authorized_ids", at: 4, says: "empty key", hints: "name:key" },
    Wrong { line: "temperature = 0.0", new: "temperature = ", key: "", at: 15, says: "not valid TOML", hints: "" },
    Wrong { line: "temperature = 0.0", new: "batch_size = 2", key: "", at: 15, says: "not valid TOML", hints: "" },
];

#[test]
fn every_mistake_is_named_located_and_explained() {
    for Wrong { line, new, key, at, says, hints } in WRONG {
        let error = parse(&with(PUBLISHED_1B, line, new)).expect_err(new);
        let shown = error.to_string();
        assert_eq!(error.key.as_deref().unwrap_or_default(), *key, "{shown}");
        assert_eq!(error.line.unwrap_or_default(), *at, "{shown}");
        assert!(error.message.contains(says), "{shown}");
        let hint = error.hint.unwrap_or_default();
        assert!(hint.contains(hints), "{shown}: {hint}");
        assert!(shown.starts_with("config.toml") && !shown.contains('\n'), "{shown}");
    }
}

#[test]
fn two_modules_cannot_share_a_path() {
    let second = PUBLISHED_1B[PUBLISHED_1B.find("[modules").unwrap()..].replace(".asr", ".two");
    let error = parse(&format!("{PUBLISHED_1B}{second}")).unwrap_err();
    assert_eq!(error.key.as_deref(), Some("modules.two.path"));
    assert!(error.message.contains("module asr"), "{error}");
}

#[test]
fn conditioners_need_exactly_one_answer() {
    let both = with(
        PUBLISHED_1B,
        "conditioning_learnt_padding = true",
        "conditioning_learnt_padding = true\nconditioning_delay = 0.5",
    );
    assert!(parse(&both).is_ok(), "without conditioners neither matters");
    let neither = with(PUBLISHED_1B, "conditioning_learnt_padding = true\n", "");
    let negative =
        with(PUBLISHED_1B, "conditioning_learnt_padding = true", "conditioning_delay = -1");
    for (text, says) in [(both, "together"), (neither, "is missing"), (negative, "is -1")] {
        let error = parse(&(text + DELAY_CONDITIONER)).unwrap_err();
        assert_eq!(error.key.as_deref(), Some("modules.asr.conditioning_delay"));
        assert!(error.message.contains(says), "{error}");
    }
    let other_name = DELAY_CONDITIONER.replace("delay", "speaker");
    let error = parse(&format!("{PUBLISHED_1B}{other_name}")).unwrap_err();
    assert_eq!(error.key.as_deref(), Some("modules.asr.model.conditioners"));
}

#[test]
fn keys_are_never_shown() {
    let text = PUBLISHED_1B.replace("public_token", "canary");
    let config = parse(&text).unwrap();
    assert!(!format!("{config:?}").contains("canary"));
    assert!(!config.summary_json().to_string().contains("canary"));
    for wrong in ["authorized_ids = \"canary\"", "authorized_ids = [\"canary\", 12345]"] {
        let text = with(&text, "authorized_ids = [\"canary\"]", wrong);
        let error = format!("{:?}", parse(&text).unwrap_err());
        assert!(!error.contains("canary") && !error.contains("12345"), "{error}");
        assert!(error.contains("list of strings"), "{error}");
    }
}

#[test]
fn files_are_listed_resolved_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = parse(PUBLISHED_1B).unwrap();
    let files = config.files();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|file| file.value.starts_with("hf://") && file.module == "asr"));
    assert!(config.check_files().is_ok(), "files of a hub are not on this machine yet");

    let paths: Vec<PathBuf> = (0..3).map(|i| folder.path().join(format!("file {i}"))).collect();
    let resolved: BTreeMap<String, PathBuf> =
        files.into_iter().map(|file| file.value).zip(paths.clone()).collect();
    config.resolve(&resolved);
    let error = config.check_files().unwrap_err();
    assert_eq!(error.key.as_deref(), Some("modules.asr.lm_model_file"));
    assert_eq!(error.line, Some(9));
    assert!(error.message.contains("file 0") && error.message.contains("does not exist"));
    for path in &paths {
        std::fs::write(path, "").unwrap();
    }
    assert!(config.check_files().is_ok());
    std::fs::remove_file(&paths[2]).unwrap();
    std::fs::create_dir(&paths[2]).unwrap();
    let error = config.check_files().unwrap_err();
    assert!(error.message.contains("is not a file"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nonexistent/c.toml"), |_| None).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/c.toml: cannot be read"), "{error}");
}

#[test]
fn a_file_without_end_is_not_read_to_it() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &[b'#'; (1 << 20) + 1]).unwrap();
    let error = Config::load(file.path(), |_| None).unwrap_err().to_string();
    assert!(error.contains("over 1048576 bytes"), "{error}");
}
