"""`make faults`: the package with another extension, for tests only.

    python scripts/faulty_package.py EXTENSION FOLDER

Links everything of python/moshi_ctl into FOLDER/moshi_ctl and copies EXTENSION beside it. With
FOLDER first in PYTHONPATH, `python -m moshi_ctl` is that package.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "python" / "moshi_ctl"
EXTENSION_NAME = "_native.abi3.so"


def main(extension: Path, folder: Path) -> None:
    """Makes the package anew."""
    package = folder / PACKAGE.name
    if package.exists():
        shutil.rmtree(package)
    package.mkdir(parents=True)
    for path in PACKAGE.iterdir():
        if path.name not in {EXTENSION_NAME, "__pycache__"}:
            (package / path.name).symlink_to(path)
    shutil.copy(extension, package / EXTENSION_NAME)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
