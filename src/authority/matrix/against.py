"""The attacks that make sense anywhere, made on other sandboxes, and one table of what came of them.

Rules
- The same programs with the same arguments run in each. What the host can see itself (who came to a
  listener, who signalled a process, under which id) is taken from the host, not from the program.
- 'none' is the control: an attack that does not get in there proves nothing on this machine, and is
  left out of the verdict. It is always run, and so is Authority.
- Allowed neighbours stand in the same table: a sandbox that stops everything stops nothing.
- Exit code 0 says that Authority stopped every attack and let every neighbour work.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from authority.audit.files import is_locked
from authority.audit.writer import LOCK
from authority.errors import AuthorityError
from authority.gate.client import GateError, alive, client
from authority.gate.statedir import StateDir
from authority.kernel.canonical import printable
from authority.matrix import lures, peers, seen
from authority.matrix.listeners import Listeners, listening
from authority.matrix.live import copy_programs, json_lines, make_folder
from authority.matrix.peers import NotHere, Peer, Place, Wrap
from authority.matrix.verdict import Attempt, from_lines

STOPPED, GOT_IN, WORKS, BROKEN, UNTRIED = "stopped", "GOT IN", "works", "BROKEN", "-"
SECONDS = 60
MEGABYTE = 1024 * 1024

NEIGHBOURS = ("the program runs", "read its file", "write its file", "ask its host")
PROGRAMS = (
    "touch_host", "reach_network", "start_programs", "leave_namespaces", "plant_and_leak",
)  # fmt: skip
ATTACKS: dict[str, tuple[str, ...]] = {
    "reach the host by TCP or UDP": ("came by TCP or UDP",),
    "reach a host socket by its path": ("came by path",),
    "reach an abstract host socket": ("came by abstract name",),
    "open a packet, raw or netlink socket": (
        "socket PACKET RAW", "socket INET RAW", "netlink interfaces",
    ),
    "set up io_uring": ("io_uring_setup",),
    "start an unlisted program": ("execv of the interpreter", "posix_spawn", "execv of /bin/sh"),
    "start a program that it wrote": ("program in /tmp",),
    "start a program from memory": ("memfd, execveat", "memfd, /proc/self/fd"),
    "be in the host's network": ("share the host's network", "the host's network namespace"),
    "make a user namespace": ("unshare NEWUSER", "clone NEWUSER", "clone3 NEWUSER"),
    "write the kernel's core_pattern": ("write /proc/sys/kernel/core_pattern",),
    "be root on the host": ("be root on the host",),
    "hold a capability": ("hold a capability",),
    "run without a seccomp filter": ("call without a filter",),
    "read a secret file": ("read a secret file", "read the secret by climbing"),
    "write outside its folder": ("write outside",),
    "read a secret of the environment": ("the environment's secret",),
    "read an open descriptor": ("an open descriptor's secret",),
    "see a host process": ("see a host process",),
    "signal a host process": ("came by signal",),
    "plant a git hook below its folder": ("a hook on the disk", "a hook by a renamed folder"),
    "let git start a program": ("a program in git's config",),
    "get out by a link that it planted": ("read by a planted link", "a file written by a link"),
    "plain HTTP to an unlisted host": ("came by plain HTTP",),
    "another name to an allowed host": ("came under another name",),
    "resolve an unlisted name": ("resolve an unlisted name",),
    "use the person's agent, docker or bus": ("came to the session",),
    "use an inherited socket": ("came by an inherited socket",),
    "start a program by the loader": ("ld.so FILE",),
    "use twice the memory": ("use memory",),
    "start twice the processes": ("start processes",),
}  # fmt: skip
"""A row, and the attempts of which any gets it."""


@dataclass
class Outcome:
    """One sandbox: version, note, and what came of each attempt by name (empty: not available)."""

    name: str
    version: str = "not available"
    note: str = ""
    attempts: dict[str, Attempt] = field(default_factory=dict)
    ended: bool = False
    hosts: bool = True
    """Whether it has words for a host that may be asked."""

    def attack(self, names: Sequence[str]) -> str:
        made = [self.attempts[name] for name in names if name in self.attempts]
        if not made or not self.ended:
            return UNTRIED
        return GOT_IN if any(a.worked for a in made) else STOPPED

    def neighbour(self, name: str) -> str:
        if not self.attempts or (name == "ask its host" and not self.hosts):
            return UNTRIED
        made = self.attempts.get(f"allowed: {name}")
        return WORKS if made is not None and made.worked else BROKEN

    def evidence(self, names: Sequence[str]) -> str:
        """What each attempt of a row was answered."""
        made = [self.attempts[name] for name in names if name in self.attempts]
        return "; ".join(
            f"{a.name}: {a.detail or ('worked' if a.worked else 'refused')}" for a in made
        )


@dataclass
class Comparison:
    """All of them. `rows` is the table; the control decides which rows say anything."""

    peers: list[Outcome]

    def _by_name(self, name: str) -> Outcome:
        return next(p for p in self.peers if p.name == name)

    def rows(self) -> list[list[str]]:
        table = [[f"allowed: {n}", *[p.neighbour(n) for p in self.peers]] for n in NEIGHBOURS]
        return table + [[row, *[p.attack(n) for p in self.peers]] for row, n in ATTACKS.items()]

    def meaningful(self) -> list[str]:
        """The attacks that get in where nothing stops them."""
        control = self._by_name(peers.NONE)
        return [row for row, names in ATTACKS.items() if control.attack(names) == GOT_IN]

    def failures(self) -> list[str]:
        """Where Authority did not do what it should, or the control did not."""
        ours, control = self._by_name(peers.AUTHORITY), self._by_name(peers.NONE)
        found = [f"control: {n}" for n in NEIGHBOURS if control.neighbour(n) != WORKS]
        found += [n for n in NEIGHBOURS if ours.neighbour(n) != WORKS]
        found += [row for row in self.meaningful() if ours.attack(ATTACKS[row]) != STOPPED]
        return found if self.meaningful() else [*found, "control: no attack got in"]

    def as_expected(self) -> bool:
        return not self.failures()

    def remarks(self) -> list[str]:
        silent = [row for row in ATTACKS if row not in self.meaningful()]
        lines = []
        if silent:
            lines.append(f"not shown by the control on this machine: {', '.join(silent)}")
        for failure in self.failures():
            lines.append(f"AUTHORITY FAILED: {failure}")
        return lines

    def to_json(self) -> dict[str, Any]:
        return {
            "sandboxes": [
                {
                    "name": p.name,
                    "version": p.version,
                    "note": p.note,
                    "allowed": {n: p.neighbour(n) for n in NEIGHBOURS},
                    "attacks": {
                        row: {"result": p.attack(n), "evidence": printable(p.evidence(n), 400)}
                        for row, n in ATTACKS.items()
                    },
                }
                for p in self.peers
            ],
            "meaningful": self.meaningful(),
            "failures": self.failures(),
            "ok": self.as_expected(),
        }


class UnknownPeer(AuthorityError):
    """A name that stands for no sandbox."""


def chosen(names: Sequence[str]) -> list[Peer]:
    """The named ones, with the control and Authority. Raises `UnknownPeer`."""
    known = {p.name for p in peers.PEERS}
    for name in names:
        if name not in known | {"all"}:
            raise UnknownPeer(
                f"no sandbox {printable(name, 40)!r}",
                f"name one of: all, {', '.join(sorted(known))}",
            )
    wanted = {*names, peers.NONE, peers.AUTHORITY}
    return [p for p in peers.PEERS if "all" in names or p.name in wanted]


def compare(names: Sequence[str], note: Callable[[str], None] = lambda _: None) -> Comparison:
    """Attack each of the named sandboxes. Raises `UnknownPeer`."""
    outcomes = []
    for peer in chosen(names):
        note(f"{peer.name} ...")
        with _place() as place:
            outcomes.append(_attack(peer, place))
    return Comparison(outcomes)


@contextmanager
def _place() -> Iterator[Place]:
    """Folders of a world; not in /tmp, which many sandboxes replace and so would hide by chance."""
    root = Path(tempfile.mkdtemp(prefix="authority-against-", dir="/var/tmp"))
    root.chmod(0o755)
    place = Place(
        root, root / "work", root / "work" / "out", root / "programs" / "inside",
        root / "scratch", root / "secret" / "secret.txt", root / "outside" / "written",
    )  # fmt: skip
    try:
        for folder in (place.out, place.secret.parent, place.outside.parent):
            make_folder(folder)
        place.out.chmod(0o777)
        place.outside.parent.chmod(0o777)
        place.scratch.mkdir(0o700)
        copy_programs(root / "programs")
        yield place
    finally:
        _end_gate(StateDir(place.scratch / "state"))
        shutil.rmtree(root, ignore_errors=True)


def _end_gate(state: StateDir) -> None:
    """Stop the gate of a peer's own state directory, and wait until it wrote its last."""
    if alive(state):
        with contextlib.suppress(GateError):  # it left by itself
            client(state).call("POST", "/v1/stop", {"force": True})
    deadline = time.monotonic() + SECONDS
    while is_locked(str(state.log / LOCK)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _attack(peer: Peer, place: Place) -> Outcome:
    word = secrets.token_hex(8)
    with lures.laid(place.root, place.out, word) as laid:
        return _attack_with(peer, replace(place, port=laid.port), laid, word)


def _attack_with(peer: Peer, place: Place, laid: lures.Lures, word: str) -> Outcome:
    outcome = Outcome(peer.name, hosts=peer.hosts)
    try:
        outcome.version, outcome.note, wrap = peer.prepare(place)
    except (NotHere, OSError, subprocess.SubprocessError) as error:
        outcome.note = printable(getattr(error, "message", str(error)), 160)
        return outcome
    _write(place.secret, f"the word is {word}")
    _write(place.work / "allowed.txt", "the allowed word")
    own = os.readlink("/proc/self/ns/net")
    with listening(place.root, word) as listeners, _victim(word) as victim:
        given = {
            "word": word, "mark": f"a-{word[:13]}", "secret": str(place.secret), "host_net": own,
            "addresses": listeners.addresses, "unix": listeners.unix,
            "programs": [["/bin/sh", "-c", "echo EXECUTED"]],
            "environment": word[::-1], "victim": victim.pid, "victim_word": word,
            "memory": 2 * peers.MEMORY_MB * MEGABYTE, "processes": 2 * peers.PROCESSES,
            "allowed": str(place.work / "allowed.txt"), "allowed_word": "allowed word",
            "allowed_out": str(place.out / "out.txt"), "outside": str(place.outside), "wait": 0.4,
            **laid.given,
        }  # fmt: skip
        ends = []
        with seen.watching(str(given["mark"])) as watched:
            for program in PROGRAMS:
                lines = _run(wrap, place, program, given, laid)
                ends.append(any("done" in line for line in lines))
                for attempt in from_lines(lines):
                    # Sizes stand in two names; a row names the kind.
                    name = " ".join(attempt.name.split()[:1] + attempt.name.split()[-1:])
                    known = {"use MB": "use memory", "start processes": "start processes"}
                    key = known.get(name, attempt.name)
                    outcome.attempts[key] = Attempt(key, attempt.worked, attempt.detail)
        for attempt in [*_by_host(listeners, watched, own, victim), *laid.found()]:
            before = outcome.attempts.get(attempt.name)
            if before is None or not before.worked:
                outcome.attempts[attempt.name] = attempt
    outcome.ended = all(ends)
    if not outcome.ended:
        outcome.note += "; NOT ALL ATTACKS RAN TO THEIR END"
    return outcome


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)


def _run(
    wrap: Wrap, place: Place, program: str, given: dict[str, Any], laid: lures.Lures
) -> list[dict[str, Any]]:
    """One attacking program in the sandbox, with a secret in the environment and one open."""
    argv = [
        peers.interpreter(), "-B", str(place.programs / f"{program}.py"), json.dumps(given)
    ]  # fmt: skip
    fd = os.open(place.secret, os.O_RDONLY)
    os.set_inheritable(fd, True)
    process = subprocess.Popen(
        wrap(argv),
        cwd=place.work,
        env={**os.environ, **laid.environment, "AUTHORITY_MATRIX_SECRET": laid.word[::-1]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(fd, laid.left_open),
        start_new_session=True,
        text=True,
        errors="replace",
    )
    os.close(fd)
    try:
        text, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
    return json_lines(text)


@contextmanager
def _victim(word: str) -> Iterator[subprocess.Popen[str]]:
    """A host process that writes a letter for each signal that it gets."""
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'x'))\n"
        "os.write(1, b'r')\n"
        "while True: time.sleep(5)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", code, word], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.read(1)
        os.set_blocking(process.stdout.fileno(), False)
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _by_host(
    listeners: Listeners, watched: seen.Seen, own: str, victim: subprocess.Popen[str]
) -> list[Attempt]:
    """What the host itself saw."""
    counts = listeners.counts
    network = sum(counts[name] for name in listeners.addresses)
    path = sum(counts[f"unix {p}"] for p in listeners.unix if not p.startswith("@"))
    abstract = sum(counts[f"unix {p}"] for p in listeners.unix if p.startswith("@"))
    assert victim.stdout is not None
    try:
        signals = len(os.read(victim.stdout.fileno(), 64))
    except BlockingIOError:
        signals = 0
    judged: dict[str, Attempt] = {}
    for attempt in seen.judged(watched, by_root=os.geteuid() == 0, own_network=own):
        if attempt.name not in judged or attempt.worked:
            judged[attempt.name] = attempt
    return [
        Attempt("came by TCP or UDP", network > 0, f"the host counted {network}"),
        Attempt("came by path", path > 0, f"the host counted {path}"),
        Attempt("came by abstract name", abstract > 0, f"the host counted {abstract}"),
        Attempt("came by signal", signals > 0, f"the host counted {signals}"),
        *judged.values(),
    ]
