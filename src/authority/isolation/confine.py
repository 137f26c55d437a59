"""What the launcher gives up before the program is there: ids, capabilities, system calls, files.

Rules
- Each holds for this process and whatever comes of it, the supervisor included; none can be taken
  back.
- The order is the launcher's, and it matters: the bounding set is emptied while there is still a
  capability for it; no_new_privs comes before Landlock and seccomp; seccomp comes last, because the
  rest needs calls that it refuses.
- What was given up is asked of the kernel afterwards. If anything is left the start fails
  (`LaunchError`).
"""

import posix

from authority.isolation.calls import LaunchError, address, buffer, call

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_GET_NO_NEW_PRIVS = 4, 24, 39
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_HEADER = (0x20080522).to_bytes(4, "little") + bytes(4)
_CLONE_NEWUSER = 0x10000000
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
_SECCOMP_FILTER_FLAG_WAIT_KILLABLE = 32
_EINVAL = 22


def empty_bounding_set() -> None:
    """It takes a capability, so it comes before the others go."""
    capability = 0
    while True:
        try:
            call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError as error:
            if error.errno != _EINVAL:
                raise
            break
        capability += 1


def drop_capabilities() -> None:
    """Every set."""
    empty_bounding_set()
    call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    call("capset", _CAPABILITY_HEADER, bytes(24))


def drop_ids(uid: int, gid: int, inside: int, user_namespace: bool) -> None:
    """From root to `uid`, which must be no user of the host; then a user name space of its own."""
    if 0 in (uid, gid):
        raise LaunchError("the run would stay root")
    posix.setgroups([])
    posix.setresgid(gid, gid, gid)
    if not user_namespace:
        # A new user name space brings a full set back, so there it is emptied afterwards.
        empty_bounding_set()
    posix.setresuid(uid, uid, uid)
    call("capset", _CAPABILITY_HEADER, bytes(24))
    if posix.getresuid() != (uid,) * 3 or posix.getresgid() != (gid,) * 3 or posix.getgroups():
        raise LaunchError("the ids could not be given up")
    if not user_namespace:
        return
    # The change of ids made /proc/self root's; the maps can be written only when it is ours.
    call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
    call("unshare", _CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        fd = posix.open(f"/proc/self/{name}", posix.O_WRONLY)
        posix.write(fd, text.encode())
        posix.close(fd)
    if posix.getresuid() != (inside,) * 3:
        raise LaunchError("the user name space could not be set up")


def check_nothing_left() -> None:
    """Fails when a capability is left or a file could still grant one."""
    held = buffer(24)
    call("capget", _CAPABILITY_HEADER, held)
    if any(bytes(held)):
        raise LaunchError("capabilities are left")
    if call("prctl", _PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        raise LaunchError("no_new_privs is not in force")


def set_limits(limits: "list[tuple[int, int]]") -> None:
    """Resource limits, soft and hard alike, by the kernel's number."""
    for resource, value in limits:
        both = value.to_bytes(8, "little") * 2
        call("prlimit64", 0, resource, both, None)


def restrict_files(ruleset: int) -> None:
    """Put the Landlock ruleset in force; the descriptor is closed."""
    call("landlock_restrict_self", ruleset, 0)
    posix.close(ruleset)


def restrict_calls(code: bytes, *, listen: bool, patient: bool) -> int:
    """Loads the filter; with `listen` returns the listener that calls are handed to, else -1. With
    `patient` a call that was received there is interrupted by nothing that does not kill."""
    program = (len(code) // 8).to_bytes(8, "little") + address(code).to_bytes(8, "little")
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER if listen else 0
    flags |= _SECCOMP_FILTER_FLAG_WAIT_KILLABLE if patient else 0
    result = call("seccomp", _SECCOMP_SET_MODE_FILTER, flags, program)
    return result if listen else -1
