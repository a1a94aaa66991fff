"""The Hugging Face Hub.

``dataset`` implements the destination for dataset repos. It uploads blobs through ``xet`` or ``lfs``, edits the README
through ``card``, and sends every request through ``transport``; ``responses`` turns answers into typed errors.
"""
