"""Rows to bytes and back.

``transform`` applies the user's function, ``rows`` encodes batches as JSON Lines, ``formats`` compresses shards.
"""
