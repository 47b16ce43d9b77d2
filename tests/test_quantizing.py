"""Eight-bit files, in both directions beside another program that reads and writes them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from support import cli, configs, safetensors, speech
from support.safetensors import Numbers
from support.worker import KEY, worker

BLOCK = 32


@pytest.fixture(scope="session", name="quantized")
def _quantized(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "model.gguf"
    result = cli.run("quantize", tiny_dir / "model.safetensors", path, cwd=tiny_dir)
    assert result.returncode == 0, result.stderr
    return path


def transcript(tiny_dir: Path, model: Path, folder: Path) -> str:
    """What the tiny model hears with another language model."""
    config = configs.tiny(folder, ("$MOSHI_CTL_TINY_DIR/model.safetensors", str(model)))
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    with worker(config, cwd=folder, env=env) as started:
        result = cli.run(
            "transcribe", speech.SPEECH, "--url", started.url, "--key", KEY, cwd=folder
        )
    assert result.returncode == 0, result.stderr
    return result.stdout


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return (
        name.startswith(("transformer.", "text_linear.")) and len(shape) == 2 and not shape[1] % 32
    )


def dequantized(numbers: Numbers) -> Numbers:
    blocks = gguf.quants.quantize(numbers, Type.Q8_0)
    return gguf.quants.dequantize(blocks, Type.Q8_0)


def test_another_reader_finds_the_same_numbers(tiny_dir: Path, quantized: Path) -> None:
    before = safetensors.read(tiny_dir / "model.safetensors")
    entries, _ = safetensors.header(tiny_dir / "model.safetensors")
    reader = gguf.GGUFReader(quantized)
    fields = {key: field.contents() for key, field in reader.fields.items() if "general." in key}
    assert fields == {
        "general.architecture": "moshi",
        "general.name": "model",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.alignment": gguf.GGUF_DEFAULT_ALIGNMENT,
    }
    assert {tensor.name for tensor in reader.tensors} == set(before)
    kinds = set()
    for tensor in reader.tensors:
        expected = before[tensor.name]
        assert tuple(reversed(tensor.shape.tolist())) == expected.shape
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
        kinds.add(tensor.tensor_type)
        if is_matrix(tensor.name, expected.shape):
            assert tensor.tensor_type == Type.Q8_0
            blocks = expected.reshape(-1, BLOCK)
            largest = np.abs(blocks).max(axis=1, keepdims=True)
            # Half a step, and what half precision rounds off the scale.
            assert (np.abs(blocks - found.reshape(-1, BLOCK)) <= largest / 127 * 0.5005).all()
        else:
            assert tensor.tensor_type.name == entries[tensor.name]["dtype"]
            assert (found == expected).all()
    assert kinds == {Type.Q8_0, Type.BF16}


def test_it_hears_what_its_numbers_say(tiny_dir: Path, quantized: Path, tmp_path: Path) -> None:
    numbers = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            tuple(reversed(tensor.shape.tolist()))
        )
        for tensor in gguf.GGUFReader(quantized).tensors
    }
    same = tmp_path / "same.safetensors"
    safetensors.write(same, numbers)
    heard = transcript(tiny_dir, quantized, tmp_path)
    assert heard.strip()
    assert heard == transcript(tiny_dir, same, tmp_path)


def test_a_file_of_another_writer_is_read(tiny_dir: Path, tmp_path: Path) -> None:
    """Everything quantized that can be, embeddings too; dimensions of one left out."""
    theirs, same = tmp_path / "theirs.gguf", tmp_path / "same.safetensors"
    writer = gguf.GGUFWriter(theirs, "moshi")
    writer.add_custom_alignment(64)
    writer.add_array("some.words", ["a", "b"])
    numbers = {}
    for name, tensor in safetensors.read(tiny_dir / "model.safetensors").items():
        if tensor.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(tensor, Type.Q8_0), raw_dtype=Type.Q8_0)
            numbers[name] = dequantized(tensor)
            if "emb." in name:
                numbers[name] = numbers[name].astype(np.float16).astype(np.float32)
        else:
            writer.add_tensor(name, tensor.squeeze())
            numbers[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    safetensors.write(same, numbers)
    assert transcript(tiny_dir, theirs, tmp_path) == transcript(tiny_dir, same, tmp_path)


def test_the_summary_counts_and_measures(tiny_dir: Path, tmp_path: Path) -> None:
    source = tiny_dir / "model.safetensors"
    result = cli.run("quantize", source, "lm.gguf", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = re.fullmatch(
        r"lm\.gguf: (\d+) matrices quantized, (\d+) tensors kept, 1\.60 MB -> ([\d.]+) MB\n",
        result.stdout,
    )
    assert found, result.stdout
    shapes = {name: tensor.shape for name, tensor in safetensors.read(source).items()}
    matrices = sum(is_matrix(name, shape) for name, shape in shapes.items())
    assert [int(count) for count in found.groups()[:2]] == [matrices, len(shapes) - matrices]
    size = (tmp_path / "lm.gguf").stat().st_size
    assert float(found[3]) == round(size / 1e6, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["lm.gguf"]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["model.safetensors", "there"], 2, "there is already there", "--force"),
        (["model.safetensors", "model.safetensors", "--force"], 2, "into itself", "another file"),
        (["model.safetensors", "link", "--force"], 2, "into itself", "another file"),
        (["nowhere", "out"], 1, "nowhere: cannot be opened", None),
        (["there", "out"], 1, "there: neither GGUF nor a readable safetensors", "download"),
        (["codec.safetensors", "out"], 1, "codec.safetensors: nothing to quantize", "language"),
        (["model.safetensors", "no/out"], 1, "cannot write no/out", "folder"),
    ],
)
def test_refusals(
    arguments: list[str],
    code: int,
    message: str,
    hint: str | None,
    tiny_dir: Path,
    tmp_path: Path,
) -> None:
    for name in ("model.safetensors", "codec.safetensors"):
        shutil.copy(tiny_dir / name, tmp_path)
    (tmp_path / "there").write_text("something else")
    (tmp_path / "link").symlink_to("model.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = cli.run("quantize", *arguments, cwd=tmp_path)
    assert result.returncode == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert message in result.stderr.splitlines()[0]
    assert ("hint: " in result.stderr) == (hint is not None)
    assert (hint or "") in result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_force_replaces(tiny_dir: Path, quantized: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("something else")
    result = cli.run("quantize", tiny_dir / "model.safetensors", "out", "--force", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out").read_bytes() == quantized.read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("half", "it was cut off or changed"),
        ("header", "it was cut off or changed"),
        ("version", "GGUF version 9; versions 2 and 3 are read"),
        ("q4", "tensor `text_linear.weight` is Q4_0, which this engine does not read"),
    ],
)
def test_a_damaged_file_never_opens_the_port(
    damage: str, message: str, tiny_dir: Path, quantized: Path, tmp_path: Path
) -> None:
    content = quantized.read_bytes()
    model = tmp_path / "broken.gguf"
    if damage == "half":
        model.write_bytes(content[: len(content) // 2])
    elif damage == "header":
        model.write_bytes(content[:300])
    elif damage == "version":
        model.write_bytes(content[:4] + bytes([9]) + content[5:])
    else:
        writer = gguf.GGUFWriter(model, "moshi")
        for name, tensor in safetensors.read(tiny_dir / "model.safetensors").items():
            kind = Type.Q4_0 if name == "text_linear.weight" else Type.F32
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    config = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/model.safetensors", str(model)))
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    result = cli.run("worker", "--config", config, cwd=tmp_path, env=env)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "listening on" not in result.stdout + result.stderr
    error = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "broken.gguf" in error
    assert message in error
    assert "hint: " in result.stderr
