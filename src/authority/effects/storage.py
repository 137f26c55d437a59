"""Which file systems hold files of this machine, by `f_type` of statfs(2).

Rules
- Kernel interfaces that look like files (procfs, sysfs, cgroup, debugfs, bpf ...) are not among them,
  and no network file system is: a read there sends bytes off the machine.
- What isn't listed is none.

Source: statfs(2), Linux uapi `linux/magic.h`.
"""

from __future__ import annotations

from typing import Final

QUICK: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0x01021994,  # tmpfs
    }
)
"""File systems whose cached inodes open and stat without waiting for anybody."""

STORAGE: Final = QUICK | {
    0x794C7630,  # overlayfs
    0x2FC12FC1,  # zfs
    0xCA451A4E,  # bcachefs
    0x858458F6,  # ramfs
    0x4D44,  # vfat
    0x2011BAB0,  # exfat
    0x5346544E,  # ntfs
    0x7366746E,  # ntfs3
    0x73717368,  # squashfs
    0xE0F5E1E2,  # erofs
    0x9660,  # iso9660
    0x15013346,  # udf
    0x3153464A,  # jfs
    0x52654973,  # reiserfs
    0x3434,  # nilfs2
    0xF15F,  # ecryptfs
    0x61756673,  # aufs
    0x786F4256,  # vboxsf: folders that a virtual machine shares with its host
    0x01021997,  # 9p: likewise, and WSL's /mnt/c
    0x65735546,  # fuse and virtiofs: likewise; only the owner of the machine can mount these
}
"""File systems that hold files of this machine, by `f_type`."""
