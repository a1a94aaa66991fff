"""Rows from a running job, safe and visible on the Hugging Face Hub while it runs; the job never waits for the network."""

__version__ = "0.1.0"
