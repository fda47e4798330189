"""The time that a program takes, and the memory that it and all that it starts hold at once."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from time import perf_counter

import psutil


def borrows(child: psutil.Process) -> bool:
    """Whether Java has forked this process, but it is not yet the program it will become.

    Until then it has Java's command line, and all of Java's memory.
    """
    command = child.cmdline()
    return bool(command) and Path(command[0]).stem == "java" and command == child.parent().cmdline()


class PeakMemory(threading.Thread):
    """Samples the memory of a process's descendants inside its ``with``, and times that.

    Counts proportional set size where the system tells it (Linux), so that shared pages count once,
    else resident size. With ``itself`` the process counts too, with ``new`` only what starts later.
    """

    def __init__(self, pid: int, *, itself: bool = False, new: bool = False) -> None:
        super().__init__(daemon=True)
        self.process, self.peak_mb, self.seconds = psutil.Process(pid), 0.0, 0.0
        self.itself, self.done = itself, threading.Event()
        self.older = set(self.process.children(recursive=True)) if new else set()

    def __enter__(self) -> PeakMemory:
        self.seconds = -perf_counter()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += perf_counter()
        self.done.set()
        self.join()

    def run(self) -> None:
        done = False
        with contextlib.suppress(psutil.Error):
            while not done:  # once more after the end, for what is still held then
                done = self.done.wait(0.2)
                family = [*set(self.process.children(recursive=True)) - self.older]
                family += [self.process] if self.itself else []
                self.peak_mb = max(self.peak_mb, sum(map(self._mb, family)))

    @staticmethod
    def _mb(process: psutil.Process) -> float:
        try:
            memory = process.memory_full_info()
            return 0.0 if borrows(process) else getattr(memory, "pss", memory.rss) / 2**20
        except (psutil.Error, AttributeError):  # it has ended
            return 0.0
