"""The wheel has what it must, needs no more than it may, and loads where there is no driver."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import check_wheel
from support import emulated_cuda, fake_nvml

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's wheels")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = ["maturin", "build", "--release", "--locked", "--out", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def changed(wheel: Path, folder: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy whose files are what `change` makes of them; None leaves one out."""
    path = folder / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = change(name, source.read(name))
            if data is not None:
                target.writestr(name, data)
    return path


def test_who_asks_for_cuda_gets_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        assert "Provides-Extra: cuda\n" in archive.read(metadata).decode()


def test_it_is_fit(wheel: Path) -> None:
    findings = "\n".join(check_wheel.check(wheel))
    assert "manylinux_" in findings
    assert "kernels for compute capability 7.5: PTX 8.0" in findings
    assert "kernels for compute capability 8.0: PTX 8.0" in findings


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b".version 8.0\n.target sm_75", b".version 8.2\n.target sm_75", "PTX 8.2, not 8.0"),
        (b".entry split_f16(", b".entry sbf16_f16(", "for 75 that have to do with bf16"),
        (b".target sm_80", b".target sm_90", "not \\['75', '80'\\]"),
        (b"PyInit__native", b"PyInit__nothing"[:14], "no PyInit__native"),
        (b"\0libm.so.6\0", b"\0libx.so.6\0", "libx.so.6"),
    ],
)
def test_what_is_unfit_is_found(
    old: bytes, new: bytes, says: str, wheel: Path, tmp_path: Path
) -> None:
    def change(name: str, data: bytes) -> bytes:
        if name == check_wheel.EXTENSION:
            assert old in data
            return data.replace(old, new)
        return data

    broken = changed(wheel, tmp_path, change)
    with pytest.raises(check_wheel.UnfitError, match=says):
        check_wheel.check(broken)


def test_a_wheel_without_licence_is_unfit(wheel: Path, tmp_path: Path) -> None:
    without = changed(wheel, tmp_path, lambda name, data: None if "LICENSE-MIT" in name else data)
    with pytest.raises(check_wheel.UnfitError, match="LICENSE-MIT is missing"):
        check_wheel.check(without)


def test_it_loads_without_a_driver_and_says_what_is_missing(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True)
    code = (
        "import moshi_ctl; from moshi_ctl import _native\n"
        "print(moshi_ctl.__file__, _native.ACCELERATORS, _native.cuda_obstacle())"
    )
    env = emulated_cuda.machine_with_nvml_alone(tmp_path, fake_nvml.NO_CARD)
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    why = "libcuda, which the NVIDIA driver brings, cannot be loaded"
    assert said == f"{folder / 'moshi_ctl' / '__init__.py'} ('cuda',) {why}\n"
