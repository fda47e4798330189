"""The memory that a program and all that it starts hold at one time."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import psutil


def borrows(child: psutil.Process) -> bool:
    """Whether Java has forked this process, but it is not yet the program it will become.

    Until then it has Java's command line, and all of Java's memory.
    """
    command = child.cmdline()
    return bool(command) and Path(command[0]).stem == "java" and command == child.parent().cmdline()


class PeakMemory(threading.Thread):
    """Samples the memory of a process's descendants until it ends.

    Counts proportional set size where the system tells it (Linux), so that shared pages count once,
    else resident size. With ``itself`` the process counts too, with ``new`` only what starts later.
    """

    def __init__(self, pid: int, *, itself: bool = False, new: bool = False) -> None:
        super().__init__(daemon=True)
        self.process, self.peak_mb = psutil.Process(pid), 0.0
        self.parts: list[tuple[str, float]] = []  # names and MB of the processes at the peak
        self.itself, self.done = itself, threading.Event()
        self.older = set(self.process.children(recursive=True)) if new else set()

    def stop(self) -> None:
        """Stop before the process ends."""
        self.done.set()
        self.join()

    def run(self) -> None:
        with contextlib.suppress(psutil.Error):
            while not self.done.wait(0.2) and self.process.status() != psutil.STATUS_ZOMBIE:
                family = [*set(self.process.children(recursive=True)) - self.older]
                family += [self.process] if self.itself else []
                parts = [self._name_and_mb(process) for process in family]
                total = sum(size for _, size in parts)
                if total > self.peak_mb:
                    self.peak_mb, self.parts = total, parts

    @staticmethod
    def _name_and_mb(process: psutil.Process) -> tuple[str, float]:
        try:
            memory = process.memory_full_info()
            size = 0.0 if borrows(process) else getattr(memory, "pss", memory.rss) / 2**20
            return process.name(), size
        except (psutil.Error, AttributeError):  # it has ended
            return "ended", 0.0
