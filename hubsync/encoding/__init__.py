"""Rows to bytes and back.

``transform`` applies the user's function to a row, ``rows`` encodes a batch as JSON Lines through the encoder of
``values``, and ``diagnosis`` names the value for which a batch is refused. ``tables`` encodes what
brings its types, Arrow tables, and ``typed`` makes tables of rows whose types are declared; ``exact`` decides whether
a value fits a type, and ``media`` stores images and sound. ``codecs`` compresses the finished shards and reads them.
"""
