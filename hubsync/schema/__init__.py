"""What the columns of a dataset hold.

``profiler`` spots what is new in a batch, ``types`` infers and merges column types, ``features`` maps them to a card.
"""
