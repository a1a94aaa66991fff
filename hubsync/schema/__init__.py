"""The types of a dataset's columns.

``profiler`` finds out whether a batch is new, ``types`` infers and merges the types of what is, ``features`` converts
them to and from a dataset card.
"""
