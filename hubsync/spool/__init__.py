"""The durable store on local disk: it holds every row until it is committed.

``opening`` finds and opens a spool; ``spool`` is its directory; ``database`` is the SQLite catalogue; ``writer``
appends batches to segments; ``plans`` hands sealed segments to the committer; ``disk`` keeps a reserve for a full disk.
"""
