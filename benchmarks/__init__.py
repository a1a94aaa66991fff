"""The benchmark harness: `python -m benchmarks [NAME…] [--quick]`."""
