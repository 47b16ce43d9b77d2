"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to first; gone afterwards unless it became `target`.

    Raises:
        OSError: When nothing can be written there.
    """
    # Its name is short where the target's is as long as a name can be.
    with NamedTemporaryFile(dir=target.parent, prefix=".moshi-ctl-", delete=False) as file:
        draft = Path(file.name)
    try:
        # Private as temporary files are; others are readable.
        draft.chmod(0o644)
        yield draft
    finally:
        draft.unlink(missing_ok=True)
