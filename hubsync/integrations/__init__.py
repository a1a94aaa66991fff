"""Adapters for frameworks.

``distilabel`` is a step of that framework. It writes rows through a ``row_writer`` per predecessor, which counts
outcomes in ``summary`` and shares ``hubsync.pipeline.checkpoint_core`` with hubsync's own checkpointer.
"""
