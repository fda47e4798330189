"""The memory that a program and all that it starts hold at one time."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import psutil

MEMORY_LIMIT_MB = 1700  # what runs on Binder, which has 2 GB and JupyterLab in it
MEMORY_LIMIT_OF_08_MB = 3000  # PyTorch and a JVM at once; it needs the extra, which Binder lacks
CELL_TIMEOUT_S = 600


def borrows(child: psutil.Process) -> bool:
    """Whether Java has forked this process, but it is not yet the program it will become.

    Until then it has Java's command line; its own name is that of the thread that forked it.
    """
    command = child.cmdline()
    return bool(command) and Path(command[0]).stem == "java" and command == child.parent().cmdline()


class PeakMemory(threading.Thread):
    """Samples the memory of a process's descendants until it ends.

    Counts proportional set size where the system tells it (Linux), so that pages which processes
    share count once, else resident size. A child that Java has forked but that has not yet become
    another program borrows all of its parent's memory: it is left out. With ``itself`` the process
    counts too. Above ``limit_mb`` it is killed with all that it started, and ``killed`` is true.
    """

    def __init__(self, pid: int, *, itself: bool = False, limit_mb: float | None = None) -> None:
        super().__init__(daemon=True)
        self.process, self.peak_mb = psutil.Process(pid), 0.0
        self.parts: list[tuple[str, float]] = []
        self.itself, self.limit_mb, self.killed = itself, limit_mb, False
        self.done = threading.Event()

    def stop(self) -> None:
        """Stop before the process ends."""
        self.done.set()
        self.join()

    def alive(self) -> bool:
        return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE

    def run(self) -> None:
        while not self.done.is_set() and self.alive():
            parts = []
            try:
                family = self.process.children(recursive=True)
                if self.itself:
                    family.append(self.process)
                for child in family:
                    try:
                        name = child.name()
                        if borrows(child):
                            continue
                        memory = child.memory_full_info()
                        parts.append((name, getattr(memory, "pss", memory.rss) / 2**20))
                    except (psutil.Error, AttributeError):
                        continue
            except psutil.Error:
                return
            total = sum(size for _, size in parts)
            if total > self.peak_mb:
                self.peak_mb, self.parts = total, parts
            if self.limit_mb is not None and total > self.limit_mb:
                self.killed = True
                for child in [self.process, *family]:
                    with contextlib.suppress(psutil.Error):
                        child.kill()
                return
            time.sleep(0.2)
