from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from support import cli, configs, safetensors


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(folder: Path, *arguments: str) -> dict[str, str]:
    result = cli.run(
        "random-checkpoint",
        "--config",
        "tiny-random",
        *arguments,
        cwd=folder.parent,
        env={"MOSHI_CTL_TINY_DIR": str(folder)},
    )
    assert result.returncode == 0, result.stderr
    written = [Path(line) for line in result.stdout.splitlines()]
    assert sorted(written) == sorted(folder.iterdir())
    return {path.name: digest(path) for path in written}


def types(path: Path) -> set[str]:
    """The number formats of a safetensors file."""
    entries, _ = safetensors.header(path)
    return {entry["dtype"] for entry in entries.values()}


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    assert write(tmp_path / "b", "--seed", "0") == first
    other = write(tmp_path / "c", "--seed", "1")
    assert other["model.safetensors"] != first["model.safetensors"]
    assert other["codec.safetensors"] != first["codec.safetensors"]


def test_precision_is_the_language_model_s(tmp_path: Path) -> None:
    write(tmp_path / "a")
    assert types(tmp_path / "a/model.safetensors") == {"BF16"}
    assert types(tmp_path / "a/codec.safetensors") == {"F32"}
    write(tmp_path / "b", "--precision", "f32")
    assert types(tmp_path / "b/model.safetensors") == {"F32"}


def test_nothing_is_replaced_unless_forced(tmp_path: Path) -> None:
    before = write(tmp_path / "a")
    env = {"MOSHI_CTL_TINY_DIR": str(tmp_path / "a")}
    refused = cli.run(
        "random-checkpoint", "--config", "tiny-random", "--seed", "1", cwd=tmp_path, env=env
    )
    assert refused.returncode == 2
    assert "model.safetensors is already there" in refused.stderr
    assert "--force" in refused.stderr
    assert {path.name: digest(path) for path in (tmp_path / "a").iterdir()} == before
    assert write(tmp_path / "a", "--seed", "1", "--force") != before


def test_files_of_a_hub_are_not_written(tmp_path: Path) -> None:
    result = cli.run("random-checkpoint", "--config", "stt-1b-en_fr", cwd=tmp_path)
    assert result.returncode == 2
    assert "hf://kyutai/stt-1b-en_fr-candle/model.safetensors" in result.stderr


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = {"MOSHI_CTL_TINY_DIR": str(tmp_path / "file")}
    result = cli.run("random-checkpoint", "--config", "tiny-random", cwd=tmp_path, env=env)
    assert result.returncode == 1
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    config = configs.tiny(tmp_path, ("text_out_vocab_size = 512", "text_out_vocab_size = 4"))
    folder = tmp_path / "files"
    result = cli.run(
        "random-checkpoint",
        "--config",
        config,
        cwd=tmp_path,
        env={"MOSHI_CTL_TINY_DIR": str(folder)},
    )
    assert result.returncode == 1
    assert "tokenizer" in result.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("seed", ["-1", "x"])
def test_seeds_that_are_none(seed: str, tmp_path: Path) -> None:
    result = cli.run("random-checkpoint", "--config", "tiny-random", "--seed", seed, cwd=tmp_path)
    assert result.returncode == 2
