"""Tests of the package `hubsync.maintenance`."""
