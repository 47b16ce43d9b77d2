"""Every mistake in a configuration: one message with file, line, key and a suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest

from moshi_ctl import config
from moshi_ctl.errors import ConfigError
from support import cli, configs

MISTAKES = {
    "misspelt module key": (
        ("batch_size = 4", "batch_sice = 4"),
        "modules.asr.batch_sice",
        "unknown key",
        "batch_size",
    ),
    "misspelt top key": (
        ('instance_name = "tiny-random"', 'instance_nam = "tiny-random"'),
        "instance_nam",
        "unknown key",
        "instance_name",
    ),
    "misspelt shape key": (
        ("num_layers = 2\ndim_feedforward = 512", "num_layer = 2\ndim_feedforward = 512"),
        "modules.asr.model.transformer.num_layer",
        "unknown key",
        "num_layers",
    ),
    "wrong type": (
        ("batch_size = 4", 'batch_size = "4"'),
        "modules.asr.batch_size",
        "string",
        None,
    ),
    "no lanes": (("batch_size = 4", "batch_size = 0"), "modules.asr.batch_size", "0", "streams"),
    "unknown module type": (
        ('type = "BatchedAsr"', 'type = "BatchedAsrr"'),
        "modules.asr.type",
        "BatchedAsrr",
        "BatchedAsr",
    ),
    "unserved module type": (
        ('type = "BatchedAsr"', 'type = "Tts"'),
        "modules.asr.type",
        "Tts",
        "",
    ),
    "missing key": (
        ("asr_delay_in_tokens = 6\n", ""),
        "modules.asr.asr_delay_in_tokens",
        "missing",
        "add it",
    ),
    "impossible shape": (
        ("num_heads = 4\nnum_layers = 2", "num_heads = 3\nnum_layers = 2"),
        "modules.asr.model.transformer.num_heads",
        "3",
        None,
    ),
    "variable not set": (
        ("$MOSHI_CTL_TINY_DIR/model", "$MOSHI_NOT_SET/model"),
        "modules.asr.lm_model_file",
        "MOSHI_NOT_SET",
        "MOSHI_NOT_SET",
    ),
    "hub file without a name": (
        ("$MOSHI_CTL_TINY_DIR/model.safetensors", "hf://kyutai/model"),
        "modules.asr.lm_model_file",
        "hf://kyutai/model",
        "hf://",
    ),
    "path without slash": (
        ('path = "/api/asr-streaming"', 'path = "api/asr"'),
        "modules.asr.path",
        "api/asr",
        "/api/asr",
    ),
    "unknown precision": (
        ("temperature = 0.0", 'temperature = 0.0\nprecision = "f61"'),
        "modules.asr.precision",
        "f61",
        "did you mean `f16`?",
    ),
    "unknown precision by Kyutai's name": (
        ("temperature = 0.0", 'temperature = 0.0\ndtype_override = "f8"'),
        "modules.asr.dtype_override",
        "f8",
        None,
    ),
    "two precisions": (
        (
            "temperature = 0.0",
            'temperature = 0.0\nprecision = "q8"\ndtype_override = "f32"',
        ),
        "modules.asr.precision",
        "is q8, but `dtype_override` is f32",
        "remove `dtype_override`",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, key, said, hint = MISTAKES[mistake]
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", "/tiny")
    path = configs.tiny(tmp_path, change)
    with pytest.raises(ConfigError) as caught:
        config.read(path)
    error = caught.value
    assert error.key == key
    assert error.file == str(path)
    assert error.line is not None
    if change[1]:
        first_changed = next(
            text for text in change[1].splitlines() if text not in change[0].splitlines()
        )
        assert first_changed in path.read_text().splitlines()[error.line - 1]
    assert said in error.message
    assert "\n" not in str(error)
    if hint is not None:
        assert hint in str(error.hint)


def test_two_modules_on_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", "/tiny")
    path = configs.tiny(tmp_path)
    text = path.read_text()
    module = text[text.index("[modules.asr]") :]
    path.write_text(text + module.replace("[modules.asr", "[modules.second"))
    with pytest.raises(ConfigError, match="already the path of module asr") as caught:
        config.read(path)
    assert caught.value.key == "modules.second.path"


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    path = configs.tiny(tmp_path, ('instance_name = "tiny-random"', 'instance_name = "tiny-random'))
    with pytest.raises(ConfigError) as caught:
        config.read(path)
    assert (
        caught.value.line == path.read_text().splitlines().index('instance_name = "tiny-random') + 1
    )


def test_keys_are_counted_and_never_shown(tmp_path: Path) -> None:
    path = configs.tiny(
        tmp_path,
        (
            'instance_name = "tiny-random"',
            'instance_name = "tiny-random"\nauthorized_ids = ["s3cret", "t"]',
        ),
    )
    result = cli.run("validate", path, cwd=tmp_path, env={"MOSHI_CTL_TINY_DIR": "/tiny"})
    assert result.returncode == 0
    assert "s3cret" not in result.stdout + result.stderr
    path.write_text(path.read_text().replace('["s3cret", "t"]', '{ a = "s3cret" }'))
    result = cli.run("validate", path, cwd=tmp_path, env={"MOSHI_CTL_TINY_DIR": "/tiny"})
    assert result.returncode == 2
    assert "authorized_ids" in result.stderr
    assert "s3cret" not in result.stdout + result.stderr


PUBLISHED = """
static_dir = "./static/"
log_dir = "$HOME/tmp/tts-logs"
instance_name = "tts"
authorized_ids = ["public_token"]

[modules.asr]
path = "/api/asr-streaming"
type = "BatchedAsr"
lm_model_file = "hf://kyutai/{name}-candle/model.safetensors"
text_tokenizer_file = "hf://kyutai/{name}-candle/{tokenizer}.model"
audio_tokenizer_file = "hf://kyutai/{name}-candle/mimi-pytorch-e351c8d8@125.safetensors"
asr_delay_in_tokens = {delay}
batch_size = {lanes}
conditioning_learnt_padding = true
temperature = {temperature}

[modules.asr.model]
audio_vocab_size = 2049
text_in_vocab_size = {text_in}
text_out_vocab_size = {text_out}
audio_codebooks = 32

[modules.asr.model.transformer]
d_model = 2048
num_heads = {heads}
num_layers = {layers}
dim_feedforward = 8192
causal = true
norm_first = true
bias_ff = false
bias_attn = false
context = {context}
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
"""


@pytest.mark.parametrize(
    "values",
    [
        {
            "name": "stt-1b-en_fr",
            "tokenizer": "tokenizer_en_fr_audio_8000",
            "delay": 6,
            "lanes": 64,
            "temperature": 0.0,
            "text_in": 8001,
            "text_out": 8000,
            "heads": 16,
            "layers": 16,
            "context": 750,
        },
        {
            "name": "stt-2.6b-en",
            "tokenizer": "tokenizer_en_audio_4000",
            "delay": 32,
            "lanes": 16,
            # An integer where a float is meant, as published.
            "temperature": 0,
            "text_in": 4001,
            "text_out": 4000,
            "heads": 32,
            "layers": 48,
            "context": 375,
        },
    ],
    ids=lambda values: values["name"],
)
def test_the_published_form_is_valid(values: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "published.toml"
    path.write_text(PUBLISHED.format(**values))
    read = config.read(path)
    assert read.key_count == 1
    assert all(file.value.startswith("hf://kyutai/") for file in read.files)
