"""Read a dataset back, and follow it while a job writes: each row exactly once.

``reading`` is the public face. ``file_stream`` finds the next file to read in a commit (``files``, ``snapshot``);
``cursor`` remembers what was read, and ``rewrites`` recognizes it after files were moved or merged.
"""

from hubsync.reader.reading import Row, Rows, Shard, Shards, follow, rows, shards

__all__ = ["Row", "Rows", "Shard", "Shards", "follow", "rows", "shards"]
