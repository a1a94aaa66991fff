"""Xet storage: `formats` reads what clients upload (xorbs and shards), `cas` stores it and reads files from it."""
