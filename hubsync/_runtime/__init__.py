"""Building blocks that know nothing of datasets: time, threads, files, locks, retries, signals, secrets, text."""
