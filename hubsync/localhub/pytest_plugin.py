"""The pytest fixture `local_hub`."""
