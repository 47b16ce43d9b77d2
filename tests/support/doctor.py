"""Running `moshi-ctl doctor` where nothing outside a test's folder and loopback matters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import cli

# Nobody listens there.
NO_HUB = "http://127.0.0.1:1"
GOOD_KEY = "canary-of-the-keys"

Checks = list[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """What `--json` printed.

    Attributes:
        code: The exit code.
        status: The overall status.
        checks: The findings.
        text: Both outputs as they were.
    """

    code: int
    status: str
    checks: Checks
    text: str

    def named(self, name: str) -> Checks:
        return [check for check in self.checks if check["name"] == name]

    def only(self, name: str) -> dict[str, Any]:
        (check,) = self.named(name)
        return check

    def line(self, name: str) -> tuple[str, str]:
        """Status, and message with remedy, of the only finding of this name."""
        check = self.only(name)
        return check["status"], f"{check['message']} | {check['remedy']}"


def settings(folder: Path) -> dict[str, str]:
    """An environment in which nothing is wrong but the hub is not there."""
    return {
        "MOSHI_API_KEY": GOOD_KEY,
        "MOSHI_CTL_TINY_DIR": str(folder),
        "HF_ENDPOINT": NO_HUB,
        "HF_HOME": str(folder / "hub-home"),
        "HF_HUB_DISABLE_XET": "1",
        # A proxy of the developer's would answer for everybody.
        "NO_PROXY": "127.0.0.1",
    }


def examined(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, port: int = 0
) -> Report:
    """What `doctor --json` says; `env` is added to `settings`."""
    everything = {**settings(cwd), **(env or {})}
    result = cli.run("doctor", "--json", "-p", str(port), *arguments, cwd=cwd, env=everything)
    text = result.stdout + result.stderr
    assert "Traceback" not in text, text
    said = json.loads(result.stdout)
    assert set(said) == {"status", "checks"}
    for check in said["checks"]:
        assert set(check) == {"name", "status", "message", "remedy"}
        assert check["status"] in ("ok", "warning", "failure")
        assert (check["status"] == "ok") == (check["remedy"] is None)
    return Report(result.returncode, said["status"], said["checks"], text)
