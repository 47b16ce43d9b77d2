from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

import pytest

from moshi_ctl import _native, env
from moshi_ctl.errors import ConfigError, UsageError
from support import cli
from support.plans import Command

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
    ("content", "place"),
    [
        (b"\xff\xfe\x00 canary", ""),
        # What is on such a line may be a key that was pasted there.
        (b"# a comment\n\ncanary\nMOSHI_TEST=canary\n", ": line 3"),
        (b"MOSHI_TEST_NUL=canary\0\n", ": line 1"),
        (b"\n'canary=canary'=canary\n", ": line 2"),
    ],
)
def test_an_unusable_dot_env_is_named_and_not_repeated(
    tmp_path: Path, content: bytes, place: str
) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        env.load_dot_env(tmp_path)
    assert caught.value.message.startswith(f"{tmp_path / '.env'}{place}")
    assert "canary" not in f"{caught.value} {caught.value.hint}"
    assert "MOSHI_TEST" not in os.environ


def test_a_line_that_is_nothing_is_warned_of_and_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOSHI_TEST_NEW", raising=False)
    (tmp_path / ".env").write_text("MOSHI_TEST_NEW=new\n\ncanary canary\n")
    env.load_dot_env(tmp_path)
    assert os.environ["MOSHI_TEST_NEW"] == "new"
    monkeypatch.delenv("MOSHI_TEST_NEW")
    assert caplog.messages == [f"{tmp_path / '.env'}: line 3 is ignored: it is not NAME=value"]


def test_what_is_in_dot_env_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHI_TEST_REAL", "real")
    for name in ("MOSHI_TEST_KEPT", "MOSHI_TEST_GONE", "MOSHI_TEST_NEW"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    path = tmp_path / ".env"
    path.write_text("MOSHI_TEST_REAL=file\nMOSHI_TEST_KEPT=old\nMOSHI_TEST_GONE=old\n")
    env.load_dot_env(tmp_path)
    at_start = dict(os.environ)
    assert env.as_if_started_now() == at_start

    path.write_text(
        "MOSHI_TEST_REAL=other\nMOSHI_TEST_KEPT=new\nMOSHI_TEST_NEW=${MOSHI_TEST_KEPT}er\n"
        "MOSHI_TEST_NOTHING=${MOSHI_TEST_GONE}\n"
    )
    now = env.as_if_started_now()
    assert now["MOSHI_TEST_REAL"] == "real"
    assert now["MOSHI_TEST_KEPT"] == "new"
    assert now["MOSHI_TEST_NEW"] == "newer"
    assert now["MOSHI_TEST_NOTHING"] == ""
    assert "MOSHI_TEST_GONE" not in now

    path.write_text("MOSHI_TEST_KEPT\n")
    with pytest.raises(UsageError, match="line 1 names a variable without a value"):
        env.as_if_started_now()
    path.unlink()
    assert not {"MOSHI_TEST_KEPT", "MOSHI_TEST_GONE"} & set(env.as_if_started_now())
    # Others may be reading it at the same time.
    assert dict(os.environ) == at_start
    for name in ("MOSHI_TEST_KEPT", "MOSHI_TEST_GONE"):
        monkeypatch.delenv(name)


def test_a_dot_env_that_comes_later_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOSHI_TEST_NEW", raising=False)
    env.load_dot_env(tmp_path)
    (tmp_path / ".env").write_text("MOSHI_TEST_NEW=new\n")
    assert env.as_if_started_now()["MOSHI_TEST_NEW"] == "new"


def test_dot_env_reaches_the_configuration(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"MOSHI_CTL_TINY_DIR={tmp_path}\n")
    result = cli.run("validate", "tiny-random", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/model.safetensors" in result.stderr
    result = cli.run(
        "validate", "tiny-random", cwd=tmp_path, env={"MOSHI_CTL_TINY_DIR": "/elsewhere"}
    )
    assert "/elsewhere/model.safetensors" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("worker", "--config", "demo", "--cpu", "--threads", "1"),
        ("plan", "--config", "demo"),
        ("fit", "--config", "demo", "--out", "fitted.toml"),
        ("validate", "demo"),
        ("bench", "--config", "demo", "--lanes", "1", "--steps", "1"),
        ("random-checkpoint", "--config", "demo"),
        ("doctor", "--config", "demo", "--port", "0"),
    ],
)
def test_every_command_knows_where_the_embedded_model_is(
    arguments: tuple[str, ...],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(path: Path, **_: object) -> dict[str, object]:
        raise ConfigError(os.environ["MOSHI_CTL_EMBEDDED"], file=str(path))

    monkeypatch.setattr(_native, "read_config", found)
    monkeypatch.setattr(_native, "bench", found)
    default = str(Path(str(files("moshi_ctl"))) / "embedded")
    said = command(*arguments)
    assert default in said.out + said.err
    # Somebody may have another one.
    monkeypatch.delenv("MOSHI_CTL_EMBEDDED")
    (tmp_path / ".env").write_text("MOSHI_CTL_EMBEDDED=/of/env-file\n")
    said = command(*arguments)
    assert "/of/env-file" in said.out + said.err
    monkeypatch.setenv("MOSHI_CTL_EMBEDDED", "/of/environment")
    said = command(*arguments)
    assert "/of/environment" in said.out + said.err


def test_the_embedded_model_counts_as_not_set_where_it_is_blank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default = str(env.embedded_folder())
    for value, folder in ((" ", default), ("", default), ("/elsewhere", "/elsewhere")):
        monkeypatch.setenv("MOSHI_CTL_EMBEDDED", value)
        env.set_defaults()
        assert os.environ["MOSHI_CTL_EMBEDDED"] == folder


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
