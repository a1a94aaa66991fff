"""Checkpointers for frameworks that have a pipeline of their own: a module each, imported by its name."""
