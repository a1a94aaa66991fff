"""From sealed segments to commits on the Hub.

``compressor`` turns segments into other formats, ``committer`` stages, plans and commits them, ``card_updater`` and
``schema_check`` keep the dataset loadable, ``rate_limiter`` paces the commits, ``retry`` waits out errors, ``rollback``
detects a spool that was set back.
"""
