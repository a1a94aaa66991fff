"""Read a dataset back, and follow it while a job writes to it: each row exactly once.

    rows, follow (row_iterator)      shards (shard_listing)      both iterate by `iteration`
      │ rows of one file at a time
    file_stream                      which files to read next, from two sources:
      ├── pending_segments           a spool: rows that are not committed yet
      └── snapshot                   the Hub: files, card, watermarks and contents of one commit
          ├── selection              which files hold the wanted rows
          └── series                 which shards belong to which writer

`cursor` records what was read, by row fingerprints; `rewrites` recognizes these rows in files that moved or merged.
"""

from hubsync.reader.row_iterator import Row, Rows, follow, rows
from hubsync.reader.shard_listing import Shard, Shards, shards

__all__ = ["Row", "Rows", "Shard", "Shards", "follow", "rows", "shards"]
