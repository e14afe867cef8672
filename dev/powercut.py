#!/usr/bin/env python3
"""Cuts the power of one mounted ext4: nothing that was not synced survives. powercut.py MOUNTPOINT (as root)

Afterwards every access fails until the file system is unmounted and mounted again.
"""
import fcntl
import os
import struct
import sys

EXT4_IOC_SHUTDOWN = 2 << 30 | 4 << 16 | ord("X") << 8 | 125  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2


def cut(mountpoint):
    directory = os.open(mountpoint, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(directory)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    cut(sys.argv[1])
