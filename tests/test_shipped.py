from __future__ import annotations

from pathlib import Path

import pytest

from moshi_ctl import _native, config, shipped
from moshi_ctl.errors import ConfigError, UsageError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", shipped.names())
def test_each_is_valid_and_lists_no_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", "/tiny")
    monkeypatch.setenv("MOSHI_CTL_EMBEDDED", "/embedded")
    checked = config.read(shipped.path_of(name))
    assert checked.key_count == 0
    assert {name: module.path for name, module in checked.modules.items()} == {
        "asr": "/api/asr-streaming"
    }
    assert len(checked.files) == 3


def test_the_repository_s_folder_is_the_package_s() -> None:
    in_root = {path.name: path.read_text() for path in (ROOT / "configs").glob("*.toml")}
    assert in_root == {
        f"{name}.toml": shipped.path_of(name).read_text() for name in shipped.names()
    }
    for name in ("demo", "stt-1b-en_fr", "stt-1b-en_fr-cpu", "stt-2.6b-en", "tiny-random"):
        assert name in shipped.names()


def test_the_one_for_the_cpu_differs_in_what_a_cpu_needs() -> None:
    def module(name: str) -> dict[str, object]:
        summary = _native.read_config(shipped.path_of(name), require_files=False)
        fields: dict[str, object] = summary["modules"]["asr"]
        return fields

    usual, cpu = module("stt-1b-en_fr"), module("stt-1b-en_fr-cpu")
    different = {key: value for key, value in cpu.items() if value != usual[key]}
    assert different == {"batch_size": "auto", "device": "cpu"}


@pytest.mark.parametrize("name", shipped.names())
def test_each_has_a_summary_of_one_line(name: str) -> None:
    assert 20 < len(shipped.summary(name)) < 100


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.find("tiny-random") == shipped.path_of("tiny-random")
    assert shipped.find("tiny-random.toml") == shipped.path_of("tiny-random")
    Path("tiny-random.toml").touch()
    assert shipped.find("tiny-random.toml") == Path("tiny-random.toml")


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        shipped.find(str(tmp_path / "tiny-random"))
    with pytest.raises(ConfigError, match="is a folder"):
        shipped.find(str(tmp_path))
    with pytest.raises(UsageError, match="'nothing'"):
        shipped.path_of("nothing")
