"""Bad files and configurations: one clear line that names file and place, and no open port."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import pytest

from moshi_ctl import config
from moshi_ctl.errors import ConfigError
from support import cli, configs, safetensors
from support.refusals import refusal
from support.worker import KEY, worker

FAILURE = 1
CONFIG_ERROR = 2

MODEL = "model.safetensors"
CODEC = "codec.safetensors"
TOKENIZER = "tokenizer.model"

# As many as the smallest machine that tests run on has processors.
AT_A_TIME = 2

Change: TypeAlias = Callable[[Path], None]


@pytest.fixture(name="env")
def _env(tiny_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}


@dataclass(frozen=True)
class Case:
    """A worker of the tiny model with one thing changed.

    Attributes:
        name: What is changed; also the folder where that happens.
        file: The file that is changed.
        change: Changes it.
        says: What the error has to hold besides the file's path.
        options: Of the worker.
    """

    name: str
    file: str
    change: Change
    says: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=("--device", "cpu"))


def check(cases: Iterable[Case], tiny_dir: Path, folder: Path) -> None:
    """Starts a worker for each case, and sees to it that it says what is wrong, and ends."""

    def complaint(case: Case) -> str | None:
        place = folder / case.name
        place.mkdir()
        for path in tiny_dir.iterdir():
            if path.is_file() and path.name != case.file:
                (place / path.name).symlink_to(path)
        changed = place / case.file
        shutil.copy(tiny_dir / case.file, changed)
        case.change(changed)
        env = {"MOSHI_CTL_TINY_DIR": str(place), "MOSHI_API_KEY": KEY}
        try:
            error, _ = refusal(
                "--config", "tiny-random", *case.options, cwd=place, env=env, code=FAILURE
            )
        except AssertionError as failed:
            return f"{case.name}: {failed}"
        missing = [said for said in (str(changed), *case.says) if said not in error]
        return f"{case.name}: {error} does not say {missing}" if missing else None

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        complaints = [said for said in pool.map(complaint, cases) if said is not None]
    assert not complaints, "\n".join(complaints)


def cut(tenths: int) -> Change:
    """Keeps so many tenths of a file."""

    def change(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * tenths // 10])

    return change


def flip(bit: int, at: int | bytes) -> Change:
    """Flips a bit of a byte: that at a place, or the last one of the first text of this sort."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        place = at if isinstance(at, int) else content.index(at) + len(at) - 1
        content[place] ^= 1 << bit
        path.write_bytes(content)

    return change


def put(content: bytes) -> Change:
    """Replaces a file by another."""

    def change(path: Path) -> None:
        path.write_bytes(content)

    return change


def tensor(name: str, change: Callable[[dict[str, Any], bytes], bytes]) -> Change:
    """Changes what a file says of a tensor, and its bytes."""

    def rewrite(entries: dict[str, Any], blobs: dict[str, bytes]) -> None:
        blobs[name] = change(entries[name], blobs[name])

    return lambda path: safetensors.rewrite(path, rewrite)


@pytest.mark.parametrize("name", [MODEL, CODEC, TOKENIZER])
def test_files_that_were_cut_off(name: str, tiny_dir: Path, tmp_path: Path) -> None:
    check((Case(f"{n}0 percent", name, cut(n)) for n in range(10)), tiny_dir, tmp_path)


@pytest.mark.parametrize(
    ("name", "used"),
    [(MODEL, "transformer.layers.1.norm2.alpha"), (CODEC, "encoder.model.3.conv.conv.weight")],
)
def test_a_flipped_bit_in_a_header(name: str, used: str, tiny_dir: Path, tmp_path: Path) -> None:
    entry = f'"{used}":{{'.encode()
    content = (tiny_dir / name).read_bytes()
    start = content.index(entry)
    end = content.index(b"}", start)
    assert 8 < start < end < 8 + int.from_bytes(content[:8], "little")

    def inside(text: bytes, after: int = 0) -> int:
        return content.index(text, start, end) + len(text) + after

    check(
        [
            Case("shorter header", name, flip(4, 0)),
            Case("huge header", name, flip(6, 7)),
            Case("brace", name, flip(0, 8)),
            Case("tensor's name", name, flip(0, start + 1), (used, "is missing")),
            Case("quote", name, flip(0, start)),
            Case("dtype", name, flip(0, inside(b'"dtype":"'))),
            Case("shape", name, flip(0, inside(b'"shape":['))),
            Case("offset", name, flip(0, inside(b'"data_offsets":['))),
        ],
        tiny_dir,
        tmp_path,
    )


def test_a_flipped_bit_in_a_tokenizer(tiny_dir: Path, tmp_path: Path) -> None:
    key = "text_tokenizer_file"
    check(
        [
            Case("first tag", TOKENIZER, flip(7, 0), (key,)),
            Case("first length", TOKENIZER, flip(6, 1), (key,)),
            Case("first field", TOKENIZER, flip(2, 2), (key,)),
            Case("byte of no text", TOKENIZER, flip(7, 4), (key,)),
        ],
        tiny_dir,
        tmp_path,
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((cut(tenths), "config.toml") for tenths in range(10)),
        (flip(7, b"instance"), "UTF-8"),
        (flip(0, b"\nbatch_size"), "modules.asr.batch_sizd: unknown key"),
        (flip(0, b"\n[modules"), "moduler: unknown key"),
        (flip(0, b'\ntype = "'), "not valid TOML"),
        (flip(6, b"\nbatch_size = 4"), "not valid TOML"),
    ],
)
def test_a_configuration_that_was_cut_off_or_has_a_flipped_bit(
    change: Change, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", str(tmp_path))
    path = configs.tiny(tmp_path)
    config.read(path)
    change(path)
    with pytest.raises(ConfigError) as caught:
        config.read(path, require_files=True)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [MODEL, CODEC, TOKENIZER])
def test_files_that_are_something_else(name: str, tiny_dir: Path, tmp_path: Path) -> None:
    other = tiny_dir / (CODEC if name != CODEC else TOKENIZER)
    noise = bytes((7 * i + 3) % 256 for i in range(4096))
    check(
        [Case("noise", name, put(noise)), Case("other", name, put(other.read_bytes()))],
        tiny_dir,
        tmp_path,
    )


@pytest.mark.parametrize("key", [MODEL, CODEC, TOKENIZER])
def test_files_that_are_missing(key: str, tmp_path: Path, env: dict[str, str]) -> None:
    config = configs.tiny(tmp_path, (f"$MOSHI_CTL_TINY_DIR/{key}", f"/nowhere/{key}"))
    error, hint = refusal("--config", config, cwd=tmp_path, env=env, code=CONFIG_ERROR)
    assert f"{config}:" in error
    assert f"/nowhere/{key}" in error
    assert hint


TENSORS = (
    (MODEL, "emb.3.weight"),
    (MODEL, "transformer.layers.1.gating.linear_in.weight"),
    (CODEC, "encoder.model.4.block.1.conv.conv.weight"),
    (CODEC, "quantizer.rvq_rest.vq.layers.2._codebook.embedding_sum"),
)


def reversed_shape(entry: dict[str, Any], data: bytes) -> bytes:
    entry["shape"] = entry["shape"][::-1]
    return data


def twice_as_long(entry: dict[str, Any], data: bytes) -> bytes:
    entry["shape"] = [2 * entry["shape"][0], *entry["shape"][1:]]
    return 2 * data


def of_type(dtype: str, item_bytes: int) -> Callable[[dict[str, Any], bytes], bytes]:
    def change(entry: dict[str, Any], data: bytes) -> bytes:
        numbers = len(data) // {"BF16": 2, "F32": 4}[entry["dtype"]]
        entry["dtype"] = dtype
        return bytes(numbers * item_bytes)

    return change


def test_tensors_of_another_shape(tiny_dir: Path, tmp_path: Path) -> None:
    check(
        [
            Case(f"{what} {name}", file, tensor(name, change), (f"tensor `{name}`", "shape"))
            for file, name in TENSORS
            for what, change in (("reversed", reversed_shape), ("longer", twice_as_long))
        ],
        tiny_dir,
        tmp_path,
    )


def test_tensors_of_another_type(tiny_dir: Path, tmp_path: Path) -> None:
    check(
        [
            Case(f"{dtype} {name}", file, tensor(name, of_type(dtype, size)), (name, f"is {dtype}"))
            for file, name in TENSORS
            for dtype, size in (("I64", 8), ("U8", 1))
        ],
        tiny_dir,
        tmp_path,
    )


def test_a_shape_that_the_configuration_does_not_say(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.tiny(tmp_path, ("text_out_vocab_size = 512", "text_out_vocab_size = 511"))
    error, _ = refusal("--config", config, cwd=tmp_path, env=env, code=FAILURE)
    assert "text_linear.weight" in error
    assert "511" in error
    assert "512" in error


def test_a_tokenizer_of_another_size(tiny_dir: Path, tmp_path: Path) -> None:
    content = (tiny_dir / TOKENIZER).read_bytes()
    first = 2 + content[1]  # a tag, a length, and so many bytes
    says = ("text_tokenizer_file", "511 pieces", "text_out_vocab_size is 512")
    check([Case("one fewer", TOKENIZER, put(content[first:]), says)], tiny_dir, tmp_path)


NAN = float("nan")
INFINITY = float("inf")


def last_number(value: float) -> Callable[[dict[str, Any], bytes], bytes]:
    """Makes the last number of a tensor another."""

    def change(entry: dict[str, Any], data: bytes) -> bytes:
        written = struct.pack("<f", value)
        written = written[2:] if entry["dtype"] == "BF16" else written
        return data[: -len(written)] + written

    return change


def not_finite(
    file: str, name: str, value: float, precision: str, *options: str, what: str = ""
) -> Case:
    return Case(
        f"{what}{value} in {name} {precision} {' '.join(options)}",
        file,
        tensor(name, last_number(value)),
        (name, "not finite"),
        ("--device", "cpu", "--precision", precision, *options),
    )


# One number of millions, which most steps never touch.
ANYWHERE = (
    (MODEL, "emb.3.weight"),
    (MODEL, "text_emb.weight"),
    (MODEL, "transformer.layers.0.norm1.alpha"),
    (MODEL, "transformer.layers.1.self_attn.in_proj_weight"),
    (MODEL, "out_norm.alpha"),
    (MODEL, "text_linear.weight"),
    (MODEL, "extra_heads.2.weight"),
    (CODEC, "encoder.model.4.block.1.conv.conv.bias"),
    (CODEC, "encoder.model.14.conv.conv.weight"),
    (CODEC, "encoder_transformer.transformer.layers.1.layer_scale_2.scale"),
    (CODEC, "encoder_transformer.transformer.layers.0.linear1.weight"),
    (CODEC, "downsample.conv.conv.conv.weight"),
    (CODEC, "quantizer.rvq_rest.input_proj.weight"),
    (CODEC, "quantizer.rvq_rest.vq.layers.2._codebook.embedding_sum"),
    (CODEC, "quantizer.rvq_first.vq.layers.0._codebook.cluster_usage"),
)


def test_a_number_that_is_none_is_found_in_every_tensor(tiny_dir: Path, tmp_path: Path) -> None:
    cases = (not_finite(file, name, NAN, "f32", "--no-warmup") for file, name in ANYWHERE)
    check(cases, tiny_dir, tmp_path)


@pytest.mark.parametrize("precision", ["f32", "bf16", "q8"])
def test_a_number_that_is_none_is_found_in_every_precision(
    precision: str, tiny_dir: Path, tmp_path: Path
) -> None:
    in_model, in_codec = "transformer.layers.1.gating.linear_in.weight", ANYWHERE[8][1]
    cases = [
        not_finite(file, name, value, precision, *options)
        for options in ((), ("--no-warmup",))
        for file, name, value in (
            (MODEL, in_model, NAN),
            (CODEC, in_codec, -INFINITY),
        )
    ]
    check(cases, tiny_dir, tmp_path)


@pytest.mark.parametrize("options", [(), ("--no-warmup",)])
def test_a_scale_that_is_no_number_in_a_quantized_file(
    options: tuple[str, ...], tiny_dir: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    path = tmp_path / "model-q8.gguf"
    result = cli.run("quantize", tiny_dir / MODEL, path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    name = "transformer.layers.1.gating.linear_in.weight"
    (found,) = [each for each in gguf.GGUFReader(path).tensors if each.name == name]
    content = bytearray(path.read_bytes())
    content[found.data_offset : found.data_offset + 2] = b"\x00\x7e"
    path.write_bytes(content)
    config = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/model.safetensors", str(path)))
    error, _ = refusal("--config", config, *options, cwd=tmp_path, env=env, code=FAILURE)
    for said in (str(path), name, "not finite"):
        assert said in error


def test_an_unknown_key(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.tiny(tmp_path, ("batch_size = 4", "batch_sice = 4"))
    error, hint = refusal("--config", config, cwd=tmp_path, env=env, code=CONFIG_ERROR)
    line = config.read_text().splitlines().index("batch_sice = 4") + 1
    assert f"{config}:{line}: modules.asr.batch_sice: unknown key" in error
    assert hint == "hint: did you mean `batch_size`?"


def test_toml_that_is_none(env: dict[str, str], tmp_path: Path) -> None:
    config = configs.tiny(
        tmp_path, ('instance_name = "tiny-random"', "instance_name = tiny-random")
    )
    error, _ = refusal("--config", config, cwd=tmp_path, env=env, code=CONFIG_ERROR)
    line = config.read_text().splitlines().index("instance_name = tiny-random") + 1
    assert f"{config}:{line}: not valid TOML" in error


def test_a_port_that_another_server_has(env: dict[str, str], tmp_path: Path) -> None:
    with worker("tiny-random", cwd=tmp_path, env=env) as first:
        arguments = ("--config", "tiny-random", "-a", "127.0.0.1", "-p", str(first.port))
        error, hint = refusal(*arguments, cwd=tmp_path, env=env, code=FAILURE)
        assert f"port {first.port} on 127.0.0.1 is in use" in error
        assert "--port" in str(hint)
        assert first.get("/health/ready")
