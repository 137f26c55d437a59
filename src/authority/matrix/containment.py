"""INV-1, no bypass: sockets, programs, namespaces.

Each attack runs inside a sandbox made by a live gate, and once more as an ordinary process of the
same user, where the same attempts must work: otherwise they would prove nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from typing import Any

from authority.matrix import seen
from authority.matrix.listeners import Listeners, host_sockets, listening
from authority.matrix.live import POLICY, Live, Ran, outside
from authority.matrix.verdict import Attempt, Result, Row, finished, from_lines

SOCKET = Row("INV-1", "direct socket", "no socket leads out of the sandbox")
EXECVE = Row("INV-1", "execve", "no second program starts")
ESCAPE = Row("INV-1", "network namespace escape", "no way into the host's network or to its root")

WITH_NETWORK = POLICY + '[network]\nallow = ["example.com:443"]\n'
LISTED = "/bin/echo"
WITH_PROGRAM = POLICY + f'[process]\nexec = ["{LISTED}"]\n'

HYPERVISOR = "qemu-system-x86"
"""What the host calls a machine's process, in the 15 characters that it keeps."""
LOOPBACK_ONLY = frozenset({"socket INET STREAM", "socket INET6 STREAM", "socket INET DGRAM"})
"""With a network section these exist, in a namespace that holds `lo` alone."""
LOADER = "ld.so FILE"
"""A stated limit where programs are listed: see `not_in_force` in a run's first entry."""
OWN_PROGRAM = frozenset(
    {"execv of the interpreter", "posix_spawn", "execveat by descriptor", "/proc/self/exe", LOADER}
)
"""Where programs are listed, the run's own program may be started again: it is in the list."""


def named(attempts: Iterable[Attempt], names: Iterable[str]) -> list[Attempt]:
    """The attempts with these names; one that was not made counts as one that failed."""
    made = {a.name: a for a in attempts}
    return [made.get(name, Attempt(name, False, "not tried")) for name in names]


def at_host(listeners: Listeners, before: int) -> Attempt:
    """What the host's listeners counted since."""
    count = sum(listeners.counts.values()) - before
    return Attempt("reach a listener of the host", count > 0, f"counted {count}")


def ended(ran: Ran) -> list[Attempt]:
    """Controls about a contained run: it ran to its end and ended by itself."""
    code = ran.end.get("code")
    last = ran.errors.strip().splitlines()[-1:]
    return [
        finished(ran.said, "the program"),
        Attempt("its run ended", code == 0, " ".join([f"exit code {code}", *last])),
    ]


def direct_socket(live: Live) -> Result:
    """Test 1."""
    with listening(live.root, secrets.token_hex(6)) as listeners:
        given: dict[str, Any] = {"addresses": listeners.addresses, "unix": listeners.unix}
        control = from_lines(outside("reach_network", given))
        before = sum(listeners.counts.values())
        given["unix"] = sorted({*listeners.unix, *host_sockets()})
        without = live.run("reach_network", given)
        attempts = from_lines(without.said)
        attempts.append(at_host(listeners, before))
        loopback = live.run("reach_network", given, policy=WITH_NETWORK)
        inside = from_lines(loopback.said)
        attempts += [a for a in inside if a.name not in LOOPBACK_ONLY]
        attempts.append(at_host(listeners, before))
        wanted = [f"reach {name}" for name in listeners.addresses]
        wanted += [f"reach unix {path}" for path in listeners.unix]
        controls = [
            *named(control, ["socket INET STREAM", "socket INET DGRAM", *wanted]),
            Attempt("the host's listeners count", before >= len(wanted), f"{before} came"),
            *ended(without),
            *ended(loopback),
            *named(inside, ["socket INET STREAM", "socket INET DGRAM"]),
        ]
        return SOCKET.judge(
            attempts,
            controls,
            at_least=200,
            evidence=f"runs {without.run} without and {loopback.run} with a network section; "
            f"{len(given['unix'])} unix sockets of the host tried",
        )


def execve(live: Live) -> Result:
    """Test 2."""
    given = {"programs": [[LISTED, "EXECUTED"], ["/bin/sh", "-c", "echo EXECUTED"]]}
    none = live.run("start_programs", given)
    listed = live.run("start_programs", given, policy=WITH_PROGRAM)
    attempts = from_lines(none.said)
    inside = from_lines(listed.said)
    attempts += [a for a in inside if a.name not in OWN_PROGRAM | {f"execv of {LISTED}"}]
    control = from_lines(outside("start_programs", given))
    wanted = [
        "execv of the interpreter", "posix_spawn", "execveat by descriptor", LOADER,
        "memfd, execveat", "memfd, /proc/self/fd", "execv of /bin/sh",
    ]  # fmt: skip
    controls = [*named(control, wanted), *ended(none), *ended(listed)]
    controls += named(inside, [f"execv of {LISTED}"])
    limit = named(inside, [LOADER])[0]
    stated = f"; there {LOADER} of its own interpreter {'runs' if limit.worked else 'fails'}"
    return EXECVE.judge(
        attempts,
        controls,
        at_least=20,
        evidence=f"runs {none.run} without and {listed.run} with one listed program{stated}",
    )


def namespace_escape(live: Live) -> Result:
    """Test 3."""
    word = secrets.token_hex(8)
    secret = live.file("secret.txt", f"the word is {word}")
    own = os.readlink("/proc/self/ns/net")
    given = {"word": word, "secret": str(secret), "host_net": own}
    by_root = os.geteuid() == 0
    inside, plain = seen.Seen(f"in-{word[:12]}"), seen.Seen(f"out-{word[:11]}")
    mark = inside.mark
    hidden: list[Attempt] = []
    if live.house.machine:
        # The host sees no process of the run, and the hypervisor in its place.
        inside = seen.Seen(HYPERVISOR, live.pid)

    def watch() -> None:
        inside.wait()
        if live.house.machine:
            there = seen.find(mark)
            hidden.append(Attempt("be a process of the host", bool(there), f"{len(there)} seen"))

    ran = live.run("leave_namespaces", {**given, "mark": mark}, watch=watch)
    control = from_lines(
        outside("leave_namespaces", {**given, "mark": plain.mark}, watch=plain.wait)
    )
    attempts = from_lines(ran.said) + seen.judged(inside, by_root=by_root, own_network=own)
    attempts += hidden
    wanted = [
        "the host's network namespace", "unshare NEWUSER", "clone NEWUSER+NEWNET",
        "read the secret by /proc/self/root", "read the secret by climbing",
    ]  # fmt: skip
    if by_root:
        wanted += ["unshare NEWNET", "setns /proc/self/ns/net", "chroot"]
    judged = seen.judged(plain, by_root=by_root, own_network=own)
    controls = [
        *named(control, wanted),
        *named(judged, ["share the host's network", *(["be root on the host"] if by_root else [])]),
        *ended(ran),
        Attempt("the host saw the program", bool(inside.processes), _ids(inside)),
    ]
    return ESCAPE.judge(
        attempts,
        controls,
        at_least=50,
        evidence=f"run {ran.run}, {_ids(inside)} seen from the host; this process has uid "
        f"{os.geteuid()} and {own}",
    )


def _ids(found: seen.Seen) -> str:
    return ", ".join(
        f"pid {p.pid} uid {p.uids[0]} {p.network}" for p in list(found.processes.values())[:2]
    )
