"""Rows from a running job, safe and visible on the Hugging Face Hub while it runs."""
