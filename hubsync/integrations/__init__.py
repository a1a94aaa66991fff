"""Adapters for frameworks.

``distilabel`` is a step of that framework. It writes each predecessor's rows through ``row_writer``, and shares
``hubsync.pipeline.checkpoint_core`` with hubsync's own checkpointer.
"""
