"""The public uploaders and the engine behind them.

    sync, aio       the two faces, over base: put, flush, close
    schema_guard    checks the columns of a batch
    queue           bounded, in memory
    spool_thread    queue to spool
    engine          the event loop: committer, linger, heartbeats, what other processes commit
    delivery        receipts and flushes that wait for outcomes
    in_order        batches that finish in any order

``opening`` and ``closing`` begin and end an engine; ``offsets_wait`` waits for what the dataset holds; ``monitor``
knows its depth and shows it; ``wakers`` connect the thread to the event loop.
"""

from hubsync.uploader.aio import AsyncUploader
from hubsync.uploader.base import Stats
from hubsync.uploader.sync import Uploader

__all__ = ["AsyncUploader", "Stats", "Uploader"]
