"""Tests of the package `hubsync.model`."""
