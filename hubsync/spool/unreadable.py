"""Segment files that the disk refuses to read: tried again a few times, and then given up one by one.

A network disk may refuse a file for seconds (EIO, ESTALE), so each file gets a few attempts, and waits between them
while all others go on. If no file could be read, the disk is at fault and not the file: nothing is given up.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hubsync._runtime.clock import Clock

_WAITS_S = (1.0, 2.0, 4.0)  # after each failed attempt; the next one is the last
# What this process or the disk lacks, whatever the file.
_SHORTAGES = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ENOSPC, errno.EDQUOT, errno.EROFS}
)


class _Trouble(NamedTuple):
    failures: int
    retry_at: float


class UnreadableFiles:
    """The files in trouble, by segment."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._troubled: dict[int, _Trouble] = {}

    def __len__(self) -> int:
        return len(self._troubled)

    def __contains__(self, segment: int) -> bool:
        """Return whether a segment's file must be read as a whole before it counts as readable."""
        return segment in self._troubled

    def is_resting(self, segment: int) -> bool:
        """Return whether a file's next attempt is later."""
        trouble = self._troubled.get(segment)
        return trouble is not None and self._clock.time() < trouble.retry_at <= self._clock.time() + max(_WAITS_S)

    def suspect(self, segments: Iterable[int]) -> None:
        """Have these files read as a whole: one of them could not be read."""
        for segment in segments:
            self._troubled.setdefault(segment, _Trouble(0, 0.0))

    def forget(self, segment: int) -> None:
        """A file was read as a whole, or is nobody's any more."""
        self._troubled.pop(segment, None)

    def failed(self, segment: int, error: OSError) -> bool:
        """Count a failed attempt; return whether it was the last one.

        Raises:
            OSError: the disk is at fault, or this process.
        """
        if error.errno in _SHORTAGES:
            raise error
        self._probe()
        failures = self._troubled.get(segment, _Trouble(0, 0.0)).failures
        if failures == len(_WAITS_S):
            self.forget(segment)
            return True
        self._troubled[segment] = _Trouble(failures + 1, self._clock.time() + _WAITS_S[failures])
        return False

    def _probe(self) -> None:
        """Write a small file next to the segments and read it again.

        Raises:
            OSError: the disk refuses that, too.
        """
        with os.scandir(self._directory) as entries:
            next(entries, None)
        probe = self._directory / f"probe{os.getpid()}{threading.get_ident()}"
        try:
            probe.write_bytes(b"probe")
            probe.read_bytes()
        except OSError as error:
            if error.errno not in _SHORTAGES:  # on a full disk nothing can be written, and all can be read
                raise
        finally:
            with suppress(OSError):
                probe.unlink()
