"""Rows to bytes and back.

``transform`` applies the user's function to a row, ``rows`` encodes a batch as JSON Lines through the encoder of
``values``, and ``diagnosis`` names the value for which a batch is refused. ``codecs`` compresses the finished shards
and reads them.
"""
