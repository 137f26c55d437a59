"""The insides of a run's name spaces, put together while the launcher still has the right to.

Rules
- What the configuration names is done in its order and nothing else; a failure ends the start.
- Mounts of the gate's files (`mounts`) are FUSE: the device is opened here, in the user name space
  that the mount belongs to, and whoever holds it answers for the files. The run's own user alone
  may look into them, so nobody on the host gets stuck in a run's mount. They allow no device, no
  set-user-id, and no execution unless the plan says so.
- Nobody answers yet. So nothing here touches a path below a mount: what has to lie *on* one (the
  runtime in a virtual environment, a mount with execution inside one without) is cloned before the
  mount covers it. A process of its own, the *mover*, puts it in place later, while process 1
  already answers; it holds CAP_SYS_ADMIN as the run's user, follows no link, and ends at once.
- Where files are mediated call by call, nothing is mounted: the real folder is taken out of the run
  again, as a descriptor for the gate, and what is left at its path is an empty folder of the run's own.
- Landlock's rules are made here too, on the same ground: a rule belongs to the file that its path
  led to, and it holds for that file wherever it is moved.
"""

import posix

from authority.isolation.calls import LaunchError, address, call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_MNT_DETACH = 2
_ENOENT = 2
_AF_UNIX, _AF_INET, _SOCK_STREAM, _SOCK_DGRAM, _SOCK_CLOEXEC = 1, 2, 1, 2, 0o2000000
_LOOPBACK, _BACKLOG = bytes((127, 0, 0, 1)), 512
_AT_FDCWD = -100
_OPEN_TREE_CLONE, _AT_RECURSIVE = 1, 0x8000
_AT_EMPTY_PATH, _NOEXEC_NODEV_NOSUID = 0x1000, 2 | 4 | 8
_SOL_SOCKET, _SCM_RIGHTS = 1, 1
_MOVE_EMPTY_PATHS = 0x04 | 0x40
_O_PATH = 0o10000000
_RESOLVE_NO_SYMLINKS = 0x04
_PR_SET_KEEPCAPS = 8
_CAP_SYS_ADMIN = 1 << 21
_CAPABILITY_HEADER = (0x20080522).to_bytes(4, "little") + bytes(4)
_LANDLOCK_RULE_PATH_BENEATH = 1


def mount(source: "bytes | None", target: bytes, flags: int) -> None:
    """mount(2) of no file system: a bind, or other flags for what is there. Raises `OSError`."""
    call("mount", source, target, None, flags, None)


def shape_file_system(configuration: "dict[str, Any]") -> None:
    """Step 1 of the launcher, up to the gate's files. What is not there needs no cover."""
    for fd in configuration["cgroups"]:
        posix.write(fd, b"0")
        posix.close(fd)
    for path, content in configuration["files"]:
        fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o644)
        posix.write(fd, content)
        posix.close(fd)
    if configuration["no_more_namespaces"]:
        # Counts in the run's own user name space: this process was put into it by bubblewrap.
        fd = posix.open("/proc/sys/user/max_user_namespaces", posix.O_WRONLY)
        posix.write(fd, b"0")
        posix.close(fd)
    for path in configuration["read_only"]:
        try:
            mount(path, path, _MS_BIND | _MS_REC)
        except OSError as error:
            if error.errno != _ENOENT:
                raise
        else:
            mount(None, path, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | configuration["proc_flags"])
    for path in configuration["masked"]:
        try:
            mount(b"/dev/null", path, _MS_BIND)
        except OSError as error:
            if error.errno != _ENOENT:
                raise
    for source, path in configuration["covers"]:
        mount(source, path, _MS_BIND)
        mount(None, path, _MS_REMOUNT | _MS_BIND | configuration["cover_flags"])
    for path, flags in configuration["remounts"]:
        mount(None, path, _MS_REMOUNT | _MS_BIND | flags)
    for path, uid, gid in configuration["owners"]:
        posix.chown(path, uid, gid)


def make_socket(path: bytes) -> int:
    """The supervisor's socket: bound while the root may be written, listened to later."""
    listener = call("socket", _AF_UNIX, _SOCK_STREAM | _SOCK_CLOEXEC, 0)
    name = _AF_UNIX.to_bytes(2, "little") + path + b"\0"
    call("bind", listener, name, len(name))
    posix.chmod(path, 0o666)
    return listener


def make_listeners(addresses: "list[tuple[int, bool, int]]") -> "list[tuple[int, int]]":
    """(service, descriptor) for each (service, datagrams, port), on the run's own loopback. Done
    with rights, so that a port below 1024 can be taken; the run may take such ports too."""
    if addresses:
        fd = posix.open("/proc/sys/net/ipv4/ip_unprivileged_port_start", posix.O_WRONLY)
        posix.write(fd, b"0")
        posix.close(fd)
    listeners = []
    for service, datagrams, port in addresses:
        kind = _SOCK_DGRAM if datagrams else _SOCK_STREAM
        fd = call("socket", _AF_INET, kind | _SOCK_CLOEXEC, 0)
        name = _AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + _LOOPBACK + bytes(8)
        call("bind", fd, name, len(name))
        if not datagrams:
            call("listen", fd, _BACKLOG)
        listeners.append((service, fd))
    return listeners


# --- Landlock's rules ---


def make_ruleset(attribute: bytes, rules: "list[tuple[bytes, int]]") -> int:
    """A ruleset with a rule for each (path, rights); `restrict` puts it in force."""
    ruleset = call("landlock_create_ruleset", attribute, len(attribute), 0)
    for path, rights in rules:
        allow_beneath(ruleset, path, rights)
    return ruleset


def allow_beneath(ruleset: int, path: bytes, rights: int) -> None:
    """A Landlock rule: these rights on the file or below the folder at `path`."""
    fd = posix.open(path, _O_PATH | posix.O_CLOEXEC)
    rule = rights.to_bytes(8, "little") + fd.to_bytes(4, "little")
    call("landlock_add_rule", ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    posix.close(fd)


# --- the gate's files ---


def mount_files(
    configuration: "dict[str, Any]", uid: int, gid: int, ruleset: int
) -> "tuple[list[tuple[int, int]], list[tuple[bytes, int]]]":
    """Mounts them; (index, device) of each mount, and (path, clone) of what has to be moved onto
    them, outermost first. `uid` and `gid` are the run's, as this user name space counts them."""
    device = configuration["fuse"]
    if device is None:
        return [], []
    clones = [(path, clone(path)) for path in configuration["over"]]
    devices = []
    options = b"fd=%d,rootmode=40000,user_id=%d,group_id=%d"
    for index, path, flags, rights, inner in configuration["mounts"]:
        fd = posix.open(device, posix.O_RDWR | posix.O_CLOEXEC | posix.O_NONBLOCK)
        call("mount", b"authority", path, b"fuse", flags, options % (fd, uid, gid))
        allow_beneath(ruleset, path, rights)
        if inner:
            clones.append((path, clone(path)))
        devices.append((index, fd))
    # The device has no place in the run: its descriptors are all that is needed.
    call("umount2", device, _MNT_DETACH)
    posix.unlink(device)
    clones.sort(key=lambda one: len(one[0]))
    return devices, clones


# --- files that are mediated call by call ---


def take_folders(folders: "list[tuple[bytes, bytes]]") -> "list[int]":
    """For the gate: the run's root, then of each folder the real one, which loses its place here and
    from which nothing can be executed, and the empty one that stands for it."""
    if not folders:
        return []
    taken = [posix.open(b"/", _O_PATH | posix.O_CLOEXEC)]
    for hidden, path in folders:
        real = clone(hidden)
        attributes = _NOEXEC_NODEV_NOSUID.to_bytes(8, "little") + bytes(24)
        how = _AT_EMPTY_PATH | _AT_RECURSIVE
        call("mount_setattr", real, b"", how, attributes, len(attributes))
        call("umount2", hidden, _MNT_DETACH)
        posix.rmdir(hidden)
        taken += [real, posix.open(path, _O_PATH | posix.O_CLOEXEC)]
    return taken


def hand_over(control_fd: int, fds: "list[int]") -> None:
    """Gives the gate the listener and the folders, and keeps neither."""
    data = b"L" + posix.getuid().to_bytes(4, "little") + posix.getgid().to_bytes(4, "little")
    rights = b"".join(fd.to_bytes(4, "little") for fd in fds)
    control = (16 + len(rights)).to_bytes(8, "little")
    control += _SOL_SOCKET.to_bytes(4, "little") + _SCM_RIGHTS.to_bytes(4, "little") + rights
    control += bytes(-len(control) % 8)
    piece = address(data).to_bytes(8, "little") + len(data).to_bytes(8, "little")
    message = bytes(16) + address(piece).to_bytes(8, "little") + (1).to_bytes(8, "little")
    message += (
        address(control).to_bytes(8, "little") + len(control).to_bytes(8, "little") + bytes(8)
    )
    call("sendmsg", control_fd, message, 0)
    for fd in fds:
        posix.close(fd)


def clone(path: bytes) -> int:
    """A descriptor of a copy of the mount at `path`, with all below it, not yet anywhere."""
    return call("open_tree", _AT_FDCWD, path, _OPEN_TREE_CLONE | _AT_RECURSIVE | posix.O_CLOEXEC)


def start_mover(clones: "list[tuple[bytes, int]]", ids: "tuple[int, int] | None") -> int:
    """Forks the mover; what is read from the descriptor is its error, and `.` when all is done."""
    read, write = posix.pipe2(posix.O_CLOEXEC)
    pid = posix.fork()
    if pid:
        posix.close(write)
        for _path, fd in clones:
            posix.close(fd)
        return read
    try:
        if ids is not None:
            become_user_with_mounts(*ids)
        for path, fd in clones:
            move(fd, path)
        posix.write(write, b".")
    except BaseException as error:
        posix.write(write, str(error).encode("utf-8", "backslashreplace")[:4096])
    posix._exit(0)


def become_user_with_mounts(uid: int, gid: int) -> None:
    """The run's user, as whom alone a mount may be looked into, with CAP_SYS_ADMIN kept."""
    call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    posix.setgroups([])
    posix.setresgid(gid, gid, gid)
    posix.setresuid(uid, uid, uid)
    sets = _CAP_SYS_ADMIN.to_bytes(4, "little") * 2 + bytes(4)
    call("capset", _CAPABILITY_HEADER, sets + bytes(12))


def move(fd: int, path: bytes) -> None:
    """Put a cloned mount at `path`, which no link may lead to. Raises `LaunchError`."""
    how = (_O_PATH | posix.O_CLOEXEC).to_bytes(8, "little") + bytes(8)
    how += _RESOLVE_NO_SYMLINKS.to_bytes(8, "little")
    try:
        target = call("openat2", _AT_FDCWD, path, how, len(how))
        call("move_mount", fd, b"", target, b"", _MOVE_EMPTY_PATHS)
    except OSError as error:
        raise LaunchError(f"{path!r} could not be put in place: {error}") from error
