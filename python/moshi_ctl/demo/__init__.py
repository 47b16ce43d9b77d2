"""`moshi-ctl demo`: the embedded model hears something, through a server of its own."""

from moshi_ctl.demo.running import Demo, run

__all__ = ["Demo", "run"]
