"""What a worker's process takes, as the kernel counts it."""

from __future__ import annotations

import psutil

from support.worker import Worker


def resident_bytes(server: Worker) -> int:
    """Memory in use."""
    return int(psutil.Process(server.process.pid).memory_info().rss)


def open_descriptors(server: Worker) -> int:
    """Files and sockets, whoever closed the other end."""
    return int(psutil.Process(server.process.pid).num_fds())


def lanes_in_use(server: Worker) -> int:
    """Over all modules."""
    return sum(int(module["used_slots"]) for module in server.modules())
