"""Rows from a running job, safe and visible on the Hugging Face Hub while it runs, without the job ever waiting."""

from hubsync.async_uploader import AsyncUploader
from hubsync.errors import (
    AuthenticationError,
    BatchTooLarge,
    BlockedError,
    ClosedError,
    ConfigError,
    ForkedError,
    HubError,
    HubsyncError,
    NotDrained,
    OffsetUnknown,
    QueueFull,
    RepoMissingError,
    RowError,
    ShardsRefused,
    SpoolBusy,
    SpoolError,
    SpoolLost,
    SpoolMismatch,
    SpoolVersionError,
    StorageQuotaError,
    TransformError,
    TransientError,
    WriteForbiddenError,
)
from hubsync.policy import CommitPolicy, QueuePolicy, RetryPolicy, ShardPolicy, SpoolPolicy
from hubsync.receipt import Receipt
from hubsync.uploader import Stats, Uploader

__version__ = "0.1.0"

__all__ = [
    "AsyncUploader",
    "AuthenticationError",
    "BatchTooLarge",
    "BlockedError",
    "ClosedError",
    "CommitPolicy",
    "ConfigError",
    "ForkedError",
    "HubError",
    "HubsyncError",
    "NotDrained",
    "OffsetUnknown",
    "QueueFull",
    "QueuePolicy",
    "Receipt",
    "RepoMissingError",
    "RetryPolicy",
    "RowError",
    "ShardPolicy",
    "ShardsRefused",
    "SpoolBusy",
    "SpoolError",
    "SpoolLost",
    "SpoolMismatch",
    "SpoolPolicy",
    "SpoolVersionError",
    "Stats",
    "StorageQuotaError",
    "TransformError",
    "TransientError",
    "Uploader",
    "WriteForbiddenError",
    "__version__",
]
