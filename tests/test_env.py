from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from moshi_ctl import env
from moshi_ctl.errors import UsageError
from support import cli

ROOT = Path(__file__).parents[1]


def test_dot_env_sets_what_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHI_TEST_SET", "real")
    monkeypatch.setenv("MOSHI_TEST_BLANK", "")
    monkeypatch.delenv("MOSHI_TEST_NEW", raising=False)
    (tmp_path / ".env").write_text(
        "# a comment\nMOSHI_TEST_SET=file\nMOSHI_TEST_BLANK=file\nexport MOSHI_TEST_NEW='a b'\n"
    )
    env.load_dot_env(tmp_path)
    assert os.environ["MOSHI_TEST_SET"] == "real"
    assert os.environ["MOSHI_TEST_BLANK"] == ""
    assert os.environ["MOSHI_TEST_NEW"] == "a b"
    monkeypatch.delenv("MOSHI_TEST_NEW")


def test_no_dot_env_is_fine(tmp_path: Path) -> None:
    env.load_dot_env(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00 MOSHI",
        b"MOSHI_TEST_NAME_ONLY\n",
        b"MOSHI_TEST_NUL=canary\0\n",
        b"'MOSHI_TEST=NAME'=canary\n",
    ],
)
def test_an_unusable_dot_env_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path / ".env"))) as caught:
        env.load_dot_env(tmp_path)
    assert "canary" not in str(caught.value)


def test_dot_env_reaches_the_configuration(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"MOSHI_CTL_DEMO_DIR={tmp_path}\n")
    result = cli.run("validate", "demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/model.safetensors" in result.stderr
    result = cli.run("validate", "demo", cwd=tmp_path, env={"MOSHI_CTL_DEMO_DIR": "/elsewhere"})
    assert "/elsewhere/model.safetensors" in result.stderr


def test_the_example_names_every_variable() -> None:
    example = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"^(?:# )?([A-Z_]+)=", example, flags=re.MULTILINE))
    assert named == {variable.name for variable in env.VARIABLES}


def test_the_readme_explains_every_variable() -> None:
    rows = [
        line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")
    ]
    explained = {name for row in rows for name in re.findall(r"`([A-Z_]{4,})`", row.split("|")[1])}
    assert explained >= {variable.name for variable in env.VARIABLES}


def test_the_example_itself_is_usable(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    result = cli.run("validate", "stt-1b-en_fr", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
