"""The Hugging Face Hub.

``dataset`` implements the contract. It uploads blobs through ``xet`` or ``lfs`` and sends every request through
``transport``; ``responses`` turns failures into typed errors. ``card`` reads and edits the README.
"""
