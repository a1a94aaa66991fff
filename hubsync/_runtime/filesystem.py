"""Which file system a directory is on, and whether other machines see it, too."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

# `f_type` of statfs(2): from its manual page, linux/magic.h and the projects' own headers.
_NETWORK = {
    0x6969: "nfs", 0x0BD00BD0: "lustre", 0x47504653: "gpfs", 0x00C36400: "ceph", 0x19830326: "beegfs",
    0x517B: "smb", 0xFF534D42: "cifs", 0xFE534D42: "smb", 0x01021997: "9p", 0x5346414F: "afs", 0x6B414653: "afs",
    0xAAD7AAEA: "panfs", 0x20030528: "orangefs", 0x73757245: "coda", 0x564C: "ncp", 0x7461636F: "ocfs2",
    0x01161970: "gfs2", 0x786F4256: "vboxsf", 0xBACBACBC: "vmhgfs",
}  # fmt: skip
_FUSE = 0x65735546
_MEMORY = {0x01021994, 0x858458F6}  # tmpfs, ramfs
# What FUSE serves from a local disk, or to one virtual machine; anything else of it may be remote.
_LOCAL_FUSE = {
    "fuse.fuse-overlayfs", "fuseblk", "fuse.ntfs-3g", "fuse.exfat", "fuse.bindfs", "fuse.mergerfs", "fuse.gocryptfs",
    "fuse.encfs", "fuse.cryfs", "fuse.lxcfs", "fuse.squashfuse", "fuse.ext4", "fuse.zfs", "virtiofs",
}  # fmt: skip


def network_file_system(path: Path) -> str | None:
    """Return the kind of network file system that a path is on, such as "nfs" or "fuse.sshfs"; None if it is local.

    Args:
        path: a path. If it does not exist yet, its nearest parent counts.
    """
    found = _existing(path)
    magic = statfs_type(found)
    if magic == _FUSE:
        kind = _mounted_type(found) or "fuse"
        return None if kind in _LOCAL_FUSE else kind
    return _NETWORK.get(magic)


def is_in_memory(path: Path) -> bool:
    """Return whether a path is on a file system that only exists in memory."""
    return statfs_type(_existing(path)) in _MEMORY


def statfs_type(path: Path) -> int:
    """Return the kernel's number for the type of a path's file system; 0 if it does not tell, or is not Linux."""
    if sys.platform != "linux":
        return 0
    import ctypes

    with suppress(OSError, AttributeError):  # a libc without it
        about = ctypes.create_string_buffer(512)  # struct statfs has 120 bytes, and begins with `f_type`
        if ctypes.CDLL(None).statfs(os.fsencode(path), about) == 0:
            word = ctypes.sizeof(ctypes.c_long)
            return int.from_bytes(about.raw[:word], sys.byteorder) & 0xFFFFFFFF
    return 0


def _existing(path: Path) -> Path:
    return next((parent for parent in (path, *path.parents) if os.path.lexists(parent)), Path("/"))


def _mounted_type(path: Path) -> str | None:
    """Return the type with which a path's file system was mounted, such as "fuse.sshfs"."""
    with suppress(OSError, ValueError, IndexError):
        device = os.stat(path).st_dev
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            mount, _, kind = line.partition(" - ")
            if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return kind.split()[0]
    return None
