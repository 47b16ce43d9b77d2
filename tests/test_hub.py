"""Downloads from a fake hub, each in a new process: the library reads the environment once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moshi_ctl import hub
from moshi_ctl.errors import ModelFileError
from support import cli
from support.fake_hub import FakeFile, FakeHub, fake_hub
from support.worker import KEY, worker

FETCH = """
import sys
from moshi_ctl import hub, report
from moshi_ctl.errors import MoshiCtlError
try:
    print(hub.fetch_all([sys.argv[1]], show_progress=False)[sys.argv[1]])
except MoshiCtlError as error:
    report.fail(error)
    sys.exit(error.exit_code)
"""
REFERENCE = "hf://org/repo/folder/model.bin"
FILE = "org/repo/folder/model.bin"


@pytest.fixture(name="fake")
def _fake() -> Iterator[FakeHub]:
    with fake_hub() as started:
        yield started


def fetch(
    fake: FakeHub, home: Path, reference: str = REFERENCE, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FETCH, reference],
        env=cli.environment({**fake.environment(home), **env}),
        capture_output=True,
        text=True,
        timeout=cli.TIMEOUT_S,
        check=False,
    )


def assert_explained(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 1
    error, hint = result.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: cannot get 'folder/model.bin' of repository 'org/repo': ")
    assert hint.startswith("hint: ")
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in f"{error}\n{hint}"


@pytest.mark.parametrize(
    ("value", "file"),
    [
        ("hf://org/repo/file", hub.HubFile("org/repo", "file")),
        ("hf://org/repo/a/b@c.bin", hub.HubFile("org/repo", "a/b@c.bin")),
        ("/a/path", None),
        ("relative", None),
    ],
)
def test_references(value: str, file: hub.HubFile | None) -> None:
    assert hub.parse(value) == file


@pytest.mark.parametrize("value", ["hf://", "hf://org", "hf://org/repo", "hf://org//file"])
def test_incomplete_references(value: str) -> None:
    with pytest.raises(ModelFileError, match=value):
        hub.parse(value)


def test_a_name_that_no_repository_has() -> None:
    with pytest.raises(ModelFileError, match="cannot look for 'file' of repository 'or g/repo'"):
        hub.cached(hub.HubFile("or g/repo", "file"))


def test_a_file_is_downloaded_once(fake: FakeHub, tmp_path: Path) -> None:
    fake.files[FILE] = FakeFile(b"weights" * 1000)
    first = fetch(fake, tmp_path)
    assert first.returncode == 0, first.stderr
    path = Path(first.stdout.strip())
    assert path.is_relative_to(tmp_path)
    assert path.read_bytes() == fake.files[FILE].content
    assert fetch(fake, tmp_path).stdout == first.stdout
    assert [method for method, *_ in fake.requests].count("GET") == 1


def test_a_connection_that_breaks_off_is_resumed(fake: FakeHub, tmp_path: Path) -> None:
    # The library keeps what it got in pieces of 10 MiB; the break has to come after one.
    content = bytes(range(256)) * 80_000
    fake.files[FILE] = FakeFile(content, break_after=15_000_000)
    result = fetch(fake, tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).read_bytes() == content
    ranges = [wanted for method, _, wanted, _ in fake.requests if method == "GET"]
    assert ranges == [None, f"bytes={10 * 1024 * 1024}-"]


def test_the_token_is_sent_and_never_shown(fake: FakeHub, tmp_path: Path) -> None:
    fake.files[FILE] = FakeFile(status=403, error_code="GatedRepo")
    result = fetch(fake, tmp_path, HF_TOKEN="hf_canary")  # noqa: S106 - made up
    assert {authorization for *_, authorization in fake.requests} == {"Bearer hf_canary"}
    assert "hf_canary" not in result.stdout + result.stderr
    assert_explained(result, "access to the repository has to be granted", "licence", "HF_TOKEN")


def test_a_private_or_missing_repository(fake: FakeHub, tmp_path: Path) -> None:
    fake.files[FILE] = FakeFile(status=401, error_code="RepoNotFound")
    assert_explained(
        fetch(fake, tmp_path), "HTTP 401", "HF_TOKEN is not set", f"{fake.endpoint}/org"
    )


def test_a_repository_that_is_not_there(fake: FakeHub, tmp_path: Path) -> None:
    fake.files[FILE] = FakeFile(status=404, error_code="RepoNotFound")
    assert_explained(fetch(fake, tmp_path), "no such repository", "check its name")


def test_a_file_that_is_not_there(fake: FakeHub, tmp_path: Path) -> None:
    assert_explained(fetch(fake, tmp_path), "has no such file", "org/repo/tree/main")


def test_offline_takes_the_cache_or_says_so(fake: FakeHub, tmp_path: Path) -> None:
    assert_explained(
        fetch(fake, tmp_path, HF_HUB_OFFLINE="1"), "not in the cache", "HF_HUB_OFFLINE"
    )
    assert fake.requests == []
    fake.files[FILE] = FakeFile(b"weights")
    assert fetch(fake, tmp_path).returncode == 0
    seen = len(fake.requests)
    assert fetch(fake, tmp_path, HF_HUB_OFFLINE="1").returncode == 0
    assert len(fake.requests) == seen


def test_nobody_answers(fake: FakeHub, tmp_path: Path) -> None:
    result = fetch(fake, tmp_path, HF_ENDPOINT="http://127.0.0.1:1")
    assert_explained(result, "no complete answer from http://127.0.0.1:1", "network")


def test_the_hub_has_an_outage(fake: FakeHub, tmp_path: Path) -> None:
    fake.files[FILE] = FakeFile(status=501)
    assert_explained(fetch(fake, tmp_path), "HTTP 501", "later")


def test_a_cache_that_cannot_be_written(fake: FakeHub, tmp_path: Path) -> None:
    fake.files[FILE] = FakeFile(b"weights")
    (tmp_path / "hub").write_text("a file where the cache's folder should be")
    result = fetch(fake, tmp_path)
    assert_explained(result)


def test_a_worker_serves_downloaded_files(fake: FakeHub, tiny_dir: Path, tmp_path: Path) -> None:
    names = ("model.safetensors", "codec.safetensors", "tokenizer.model")
    for name in names:
        fake.files[f"org/repo/{name}"] = FakeFile((tiny_dir / name).read_bytes())
    config = tmp_path / "config.toml"
    text = cli.run("configs", "tiny-random", cwd=tmp_path).stdout
    for name in names:
        text = text.replace(f"$MOSHI_CTL_TINY_DIR/{name}", f"hf://org/repo/{name}")
    config.write_text(text)
    env = {
        **fake.environment(tmp_path / "hf"),
        "MOSHI_CTL_TINY_DIR": str(tmp_path),
        "MOSHI_API_KEY": KEY,
    }
    with worker(config, cwd=tmp_path, env=env) as started:
        (module,) = started.modules()
        assert "hf" in module["lm"]
        assert {file for _, file, *_ in fake.requests} == {f"org/repo/{name}" for name in names}


def test_a_worker_that_cannot_download_says_which_file(fake: FakeHub, tmp_path: Path) -> None:
    result = cli.run(
        "worker",
        "--config",
        "stt-1b-en_fr",
        "--addr",
        "127.0.0.1",
        cwd=tmp_path,
        env=fake.environment(tmp_path),
    )
    assert result.returncode == 1
    assert "error: cannot get 'model.safetensors' of repository 'kyutai/stt-1b-en_fr-candle'" in (
        result.stderr
    )
    assert "hint: " in result.stderr
