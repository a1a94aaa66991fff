"""The public uploaders and the worker behind them.

A batch passes ``sync`` or ``aio`` (the two faces over ``base``), ``queue``, and ``engine``, which writes it to the
spool and runs the committer. ``schema_guard`` checks its columns at `put`; ``delivery`` notifies
those that wait for commits.
"""

from hubsync.uploader.aio import AsyncUploader
from hubsync.uploader.base import Stats
from hubsync.uploader.sync import Uploader

__all__ = ["AsyncUploader", "Stats", "Uploader"]
