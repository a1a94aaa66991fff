"""The catalogue: its version, and files that are not a database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import SpoolError, SpoolVersionError
from hubsync.spool.spool import Spool


def test_a_spool_of_a_newer_version_is_not_touched(open_spool: Callable[..., Spool], directory: Path) -> None:
    spool = open_spool()
    spool.catalogue.run("PRAGMA user_version = 99")
    spool.close()
    with pytest.raises(SpoolVersionError, match="Upgrade hubsync"):
        open_spool()


def test_a_catalogue_that_is_not_a_database_is_a_clear_error(open_spool: Callable[..., Spool], directory: Path) -> None:
    open_spool().close()
    for file in directory.glob("catalogue.sqlite*"):
        file.unlink()
    (directory / "catalogue.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(SpoolError, match=r"rows' files are unharmed.*hubsync drain --rescue"):
        open_spool()
