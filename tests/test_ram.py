"""The memory of machines and containers, by the files that the kernel keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from moshi_ctl import ram
from moshi_ctl.ram import Ram

MIB = 2**20
TOTAL = 8000 * MIB
AVAILABLE = 6000 * MIB
THE_MACHINE = Ram(TOTAL, AVAILABLE)

V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=TOTAL, available=AVAILABLE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def root(folder: Path, groups: str, files: Mapping[str, int | str | bytes]) -> Path:
    """The kernel's files; sizes are written as it does, in bytes."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
    return folder


def limited(total_mib: int, available_mib: int) -> Ram:
    return Ram(total_mib * MIB, available_mib * MIB, is_limited=True)


def v2(group: str, limit: int | str, used: int = 0, inactive: int = 0) -> dict[str, int | str]:
    """The files of a group."""
    folder = f"{V2}{group}"
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 1\nfile 99999999999\ninactive_file {inactive}\nslab 7",
    }


def test_without_groups_it_is_the_machine_s(tmp_path: Path) -> None:
    assert ram.read(tmp_path) == THE_MACHINE


def test_here_it_is_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    here = ram.read()
    assert 0 < here.available_bytes <= here.total_bytes <= psutil.virtual_memory().total


CASES: dict[str, tuple[str, Mapping[str, int | str], Ram]] = {
    "its own limit": ("0::/job\n", v2("/job", 1000 * MIB, 300 * MIB), limited(1000, 700)),
    "the container's, which is its root": (
        "0::/\n",
        v2("", 1000 * MIB, 1 * MIB),
        limited(1000, 999),
    ),
    "no limit": ("0::/job\n", v2("/job", "max", 300 * MIB), THE_MACHINE),
    "a limit beyond the machine": ("0::/job\n", v2("/job", 9000 * MIB, 8999 * MIB), THE_MACHINE),
    "cached files are given back": (
        "0::/job\n",
        v2("/job", 1000 * MIB, 900 * MIB, inactive=400 * MIB),
        limited(1000, 500),
    ),
    "more cached than used": (
        "0::/job\n",
        v2("/job", 1000 * MIB, 1 * MIB, inactive=2 * MIB),
        limited(1000, 1000),
    ),
    "more used than allowed": (
        "0::/job\n",
        v2("/job", 1000 * MIB, 1001 * MIB),
        limited(1000, 0),
    ),
    "the machine has less left": (
        "0::/job\n",
        v2("/job", 7000 * MIB, 100 * MIB),
        limited(7000, 6000),
    ),
    "a smaller one around it": (
        "0::/a/b\n",
        {**v2("/a/b", 2000 * MIB, 100 * MIB), **v2("/a", 1000 * MIB, 200 * MIB)},
        limited(1000, 800),
    ),
    "a fuller one around it": (
        "0::/a/b\n",
        {**v2("/a/b", 2000 * MIB, 500 * MIB), **v2("/a", 3000 * MIB, 2900 * MIB)},
        limited(2000, 100),
    ),
    "only one around it": (
        "0::/a/b/c\n",
        {**v2("/a/b/c", "max"), **v2("/a", 1000 * MIB, 200 * MIB)},
        limited(1000, 800),
    ),
    "v1": (
        "12:cpu,cpuacct:/other\n5:hugetlb,memory:/job\n1:name=systemd:/x\n",
        {
            f"{V1}/job/memory.limit_in_bytes": 1000 * MIB,
            f"{V1}/job/memory.usage_in_bytes": 700 * MIB,
            f"{V1}/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {200 * MIB}",
            f"{V1}/memory.limit_in_bytes": 9223372036854771712,
        },
        limited(1000, 500),
    ),
    # The kernel names the group as the host sees it, the container sees it as the root.
    "v1 in a container": (
        "5:memory:/docker/0123\n",
        {
            f"{V1}/memory.limit_in_bytes": 1000 * MIB,
            f"{V1}/memory.usage_in_bytes": 700 * MIB,
        },
        limited(1000, 300),
    ),
    "v1 without limit": (
        "5:memory:/job\n",
        {f"{V1}/job/memory.limit_in_bytes": 9223372036854771712},
        THE_MACHINE,
    ),
    "groups of other things": ("3:cpu:/job\n", v2("/job", 1000 * MIB), THE_MACHINE),
    "use is not told": ("0::/job\n", {f"{V2}/job/memory.max": 1000 * MIB}, limited(1000, 1000)),
}


@pytest.mark.parametrize("case", CASES)
def test_groups(case: str, tmp_path: Path) -> None:
    groups, files, expected = CASES[case]
    assert ram.read(root(tmp_path, groups, files)) == expected


@pytest.mark.parametrize(
    "groups",
    ["", "nonsense", "0::\n", "0::relative\n", ":::::\n", "0:memory\n", "\x00\n", "0::/ \n"],
)
def test_garbage_about_groups_is_ignored(groups: str, tmp_path: Path) -> None:
    assert ram.read(root(tmp_path, groups, v2("/job", 1000 * MIB))) == THE_MACHINE


def test_bytes_that_are_no_text_are_ignored(tmp_path: Path) -> None:
    folder = root(tmp_path, "", v2("/job", 1000 * MIB))
    (folder / "proc/self/cgroup").write_bytes(b"0::/\xff\xfe\n")
    assert ram.read(folder) == THE_MACHINE


@pytest.mark.parametrize("limit", ["", "lots", "-1", "1.5", "0x10", b"\xff\xfe", "99 99"])
def test_a_limit_that_is_none_is_ignored(limit: str | bytes, tmp_path: Path) -> None:
    files: dict[str, int | str | bytes] = {**v2("/job", "max"), f"{V2}/job/memory.max": limit}
    assert ram.read(root(tmp_path, "0::/job\n", files)) == THE_MACHINE


@pytest.mark.parametrize("stat", ["", "inactive_file", "inactive_file lots", b"\xff\xfe\n"])
def test_accounts_that_cannot_be_read_count_as_used(stat: str | bytes, tmp_path: Path) -> None:
    files: dict[str, int | str | bytes] = {
        **v2("/job", 1000 * MIB, 900 * MIB),
        f"{V2}/job/memory.stat": stat,
    }
    assert ram.read(root(tmp_path, "0::/job\n", files)) == limited(1000, 100)
