"""Building blocks that know nothing of datasets: time, threads, files, locks, retries, signals, secrets, text."""

try:
    import fcntl as _fcntl  # noqa: F401
except ImportError:
    raise ImportError(
        "hubsync needs Linux or macOS, because its spool relies on the file locks of POSIX. On Windows, run the job in "
        "WSL: https://learn.microsoft.com/windows/wsl/install"
    ) from None
