"""`moshi-ctl doctor`: checks the machine and says what to do."""

from moshi_ctl.doctor.examination import CHECKS, Check, as_json, examine, run, show
from moshi_ctl.doctor.findings import Finding, Situation, Status

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Situation",
    "Status",
    "as_json",
    "examine",
    "run",
    "show",
]
