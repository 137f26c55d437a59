"""What answers the questions about one folder's files: the parts of a mount, by opcode.

Pure wiring. The mount itself (`mount`) asks with what a kernel sent; where there is no FUSE, `calls`
asks in the same words for what a program's system call means. So both are judged, recorded and
performed by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from authority.compat import fuse_abi as abi
from authority.compat.fuse_wire import Request
from authority.compat.mount_bench import Bench
from authority.compat.mount_changes import Changes
from authority.compat.mount_files import OpenFiles
from authority.compat.mount_leases import Leases
from authority.compat.mount_links import Links
from authority.compat.mount_sizes import Sizes
from authority.compat.mount_view import View

Handler = Callable[[Request], bytes | Coroutine[Any, Any, bytes]]


class Desk:
    """One folder's."""

    def __init__(self, bench: Bench, links: Links) -> None:
        self.bench = bench
        self.view = view = View(bench)
        self.changes = changes = Changes(bench, view, links)
        self.leases = leases = Leases(bench)
        self.files = files = OpenFiles(bench, view, changes, links, leases)
        sizes = Sizes(bench, view, changes, links, leases)
        self.handlers: dict[int, Handler] = {
            abi.LOOKUP: view.lookup,
            abi.GETATTR: view.getattr,
            abi.READLINK: view.readlink,
            abi.ACCESS: view.access,
            abi.STATFS: view.statfs,
            abi.OPENDIR: view.opendir,
            abi.READDIR: view.readdir,
            abi.GETXATTR: view.getxattr,
            abi.LISTXATTR: view.listxattr,
            abi.SETXATTR: changes.setxattr,
            abi.REMOVEXATTR: changes.removexattr,
            abi.MKDIR: changes.mkdir,
            abi.SYMLINK: changes.symlink,
            abi.LINK: changes.link,
            abi.UNLINK: changes.unlink,
            abi.RMDIR: changes.rmdir,
            abi.RENAME: changes.rename,
            abi.RENAME2: changes.rename,
            abi.MKNOD: files.mknod,
            abi.CREATE: files.create,
            abi.OPEN: files.open,
            abi.READ: files.read,
            abi.WRITE: files.write,
            abi.FLUSH: files.flush,
            abi.RELEASE: files.release,
            abi.FSYNC: sizes.fsync,
            abi.SETATTR: sizes.setattr,
            abi.FALLOCATE: sizes.fallocate,
            abi.LSEEK: sizes.lseek,
            abi.COPY_FILE_RANGE: sizes.copy,
        }
