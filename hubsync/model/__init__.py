"""Records that the packages exchange.

A ``batch`` carries rows and their ``receipt`` from `put` to the spool. ``layout`` gives a sealed segment its path,
which makes it a ``shard``; ``commit`` describes what is sent to the ``target``. ``stats`` counts, and
``hashing`` names content.
"""
