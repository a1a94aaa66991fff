"""Tests of the package `hubsync.reader`."""
