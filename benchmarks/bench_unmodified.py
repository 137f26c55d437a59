"""What Authority adds to an unmodified program: the same client with and without it, and beside
`@anthropic-ai/sandbox-runtime` where that does the same.

Rules
- The client (`unmodified_client`) and the server (`unmodified_world`) know nothing of who stands
  between. The client times itself inside; starts are timed around whole commands.
- Everything is measured in turns, some rounds of each; the first operations of a round are not
  counted. A figure is the median of all operations of all rounds. A start is the whole command,
  its interpreter included, to its end; the gate runs already, as it does after the first.
- "Without the sync" is a gate whose state directory is in memory (/dev/shm): everything is written,
  nothing waits for a disk. "On disk" is the same with a state directory on this machine's disk; it
  says as much about the disk as about us, so it has no target.
- sandbox-runtime, as it is set here, checks the names of hosts and binds folders; it can terminate TLS
  and filter requests too (experimental), which is not measured. It keeps no record that an answer
  waits for. Where it does nothing alike (models) there is no row. It is installed by npm, at its
  first use, as `authority matrix --against` does it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from authority.gate.client import client
from authority.gate.policyfile import start_request
from authority.gate.statedir import StateDir
from authority.matrix import peers

HERE = Path(__file__).resolve().parent
AUTHORITY = [sys.executable, "-m", "authority.cli.main"]
PLAIN, MEMORY, DISK, PEER = "plain", "memory", "disk", "sandbox-runtime"
OPEN_US, REQUEST_MS, START_RATIO = 400.0, 2.0, 10.0
THINGS = ("open", "read", "judged", "opaque", "fresh", "clone", "pytest")
SECONDS = 180
POLICY = """version = 1
[filesystem]
read = ["./**"]
write = ["./out/**"]
[network]
http = ["GET,POST http://127.0.0.2:PORT/**?*"]
allow = ["127.0.0.2:TUNNEL"]
private = ["127.0.0.2"]
[models]
allow = ["bench"]
upstream.local = { url = "http://127.0.0.2:PORT/v1", api = "openai" }
[process]
exec = ["git", "true"]
env = { PYTHONDONTWRITEBYTECODE = "1" }
[limits]
memory = "2GB"
processes = 200
[labels]
trusted = ["user", "fs:./**"]
content = ["http://127.0.0.2:PORT/**", "tcp://127.0.0.2:TUNNEL"]
[budgets]
denials = 1000
"""


class _Place:
    """A folder with a workspace, a repository to clone, a project to test, and settings."""

    def __init__(self, root: Path) -> None:
        self.root, self.work = root, root / "work"
        for folder in ("data", "out", "project"):
            (self.work / folder).mkdir(parents=True)
        root.chmod(0o755)
        (self.work / "out").chmod(0o777)
        for number in range(50):
            (self.work / "data" / f"{number}.txt").write_bytes(b"x" * 100)
        shutil.copy(HERE / "unmodified_client.py", self.work)
        for number in range(5):
            tests = "".join(f"def test_{n}():\n    assert {n} * 2 == {n + n}\n" for n in range(10))
            (self.work / "project" / f"test_{number}.py").write_text(tests, "utf-8")
        self._repository()
        self.states = {DISK: root / "state"}
        self.memory = tempfile.mkdtemp(dir="/dev/shm") if os.path.isdir("/dev/shm") else ""
        if self.memory:
            self.states[MEMORY] = Path(self.memory) / "state"

    @property
    def fast(self) -> str:
        return MEMORY if MEMORY in self.states else DISK

    def _repository(self) -> None:
        if shutil.which("git") is None:
            return
        seed = self.root / "seed"
        named = ["-c", "user.name=b", "-c", "user.email=b@example.test"]
        environment = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        (seed / "deep").mkdir(parents=True)
        for name in ("one.txt", "two.txt", "deep/three.txt"):
            (seed / name).write_text(name * 20, "utf-8")
        for words in (
            ["init", "-q", str(seed)],
            ["-C", str(seed), "add", "."],
            ["-C", str(seed), *named, "commit", "-qm", "one"],
            ["clone", "-q", "--bare", str(seed), str(self.root / "repositories" / "repo.git")],
        ):
            subprocess.run(["git", *words], check=True, env=environment)

    def policy(self, port: str, tunnel: str) -> None:
        text = POLICY.replace("PORT", port).replace("TUNNEL", tunnel)
        if shutil.which("git") is None:
            text = text.replace('"git", ', "")
        (self.work / "authority.toml").write_text(text, "utf-8")
        for state in self.states.values():
            _run([*AUTHORITY, "init", "--no-policy", "--state", str(state)], self.work)

    def wraps(self, absent: list[str]) -> dict[str, list[str]]:
        """How each starts a program: the words before it. `absent` gets why one can't be had."""
        found: dict[str, list[str]] = {PLAIN: []}
        policy = ["--policy", str(self.work / "authority.toml")]
        for name, state in self.states.items():
            found[name] = [*AUTHORITY, "run", "--quiet", "--state", str(state), *policy, "--"]
        try:
            found[PEER] = self._peer()
        except (peers.NotHere, OSError, subprocess.SubprocessError) as error:
            absent.append(str(getattr(error, "message", error)))
        return found

    def _peer(self) -> list[str]:
        place = peers.Place(
            self.root, self.work, self.work / "out", self.root, self.root,
            self.root / "seed" / "one.txt", self.root / "none",
        )  # fmt: skip
        _, _, wrap = peers.sandbox_runtime(place, domains=["127.0.0.2"])
        return wrap([])

    def close(self) -> None:
        for state in self.states.values():
            stop = [*AUTHORITY, "gate", "stop", "--force", "--state", str(state)]
            subprocess.run(stop, capture_output=True, timeout=SECONDS, check=False)
        if self.memory:
            shutil.rmtree(self.memory, ignore_errors=True)


@contextmanager
def _place() -> Iterator[_Place]:
    with tempfile.TemporaryDirectory(prefix="authority-bench-", dir="/var/tmp") as folder:
        place = _Place(Path(folder))
        try:
            yield place
        finally:
            place.close()


def _run(command: Sequence[str], cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[:8]} ended with {done.returncode}: {done.stderr[-600:]}")
    return done.stdout


def _words(wrap: list[str], name: str, argv: list[str]) -> list[str]:
    """`argv` behind the words of an environment; sandbox-runtime takes one text for a shell."""
    return [*wrap[:-1], shlex.join(argv)] if name == PEER else [*wrap, *argv]


def _measure(place: _Place, quick: bool, ports: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Times by (thing, environment), and why something is missing."""
    absent: list[str] = []
    wraps = place.wraps(absent)
    times: dict[str, dict[str, list[float]]] = {}
    things = [t for t in THINGS if t != "clone" or shutil.which("git")]
    rounds, starts = (2, 3) if quick else (5, 15)
    operations = 100 if quick else 400
    for number in range(rounds + 1):
        for name, wrap in list(wraps.items()):
            what = things if name == PEER else [*things, "model"]
            given = {"what": what, "rounds": operations if number else 10}
            given |= {"port": int(ports[0]), "tunnel": int(ports[1])}
            shutil.rmtree(place.work / "out" / "clone", ignore_errors=True)
            client = [sys.executable, "-B", "unmodified_client.py", json.dumps(given)]
            try:
                told = json.loads(_run(_words(wrap, name, client), place.work))
            except (RuntimeError, ValueError) as error:
                if name != PEER:
                    raise
                absent.append(str(error))
                del wraps[PEER]
                continue
            if number:  # the first round fills caches
                for thing, took in told.items():
                    times.setdefault(thing, {}).setdefault(name, []).extend(took)
    for number in range(starts + 1):
        for program in (["/usr/bin/true"], [sys.executable, "-c", "pass"]):
            thing = "start " + os.path.basename(program[0]).rstrip("0123456789.")
            for name, wrap in wraps.items():
                began = time.perf_counter_ns()
                _run(_words(wrap, name, program), place.work)
                took = (time.perf_counter_ns() - began) / 1000
                if number:
                    times.setdefault(thing, {}).setdefault(name, []).append(took)
            if thing == "start true":
                took = _asked(place)
                if number:
                    times.setdefault("asked true", {}).setdefault(place.fast, []).append(took)
    return times, absent


def _asked(place: _Place) -> float:
    """A run of `true`, asked of the gate that runs by its API: what a start is without a command."""
    request = start_request(place.work / "authority.toml", ["/usr/bin/true"], str(place.work))
    gate = client(StateDir(place.states[place.fast]))
    began = time.perf_counter_ns()
    last = list(gate.stream("POST", "/v1/runs", request))[-1]
    took = (time.perf_counter_ns() - began) / 1000
    if last["event"] != "end" or last["code"]:
        raise RuntimeError(f"the run did not end as it should: {last}")
    return took


TITLES = {
    "start true": "start and end of `true`, whole command",
    "asked true": "start and end of `true`, asked of a running gate by its API",
    "start python": "start and end of `python -c pass`, whole command",
    "open": "open and close of a small file, mounted",
    "read": "open and read of a small file, mounted",
    "judged": "small HTTP request, judged, connection kept",
    "opaque": "small HTTP request in a tunnel that is kept",
    "fresh": "small HTTP request, judged, a connection each",
    "model": "model call, first byte of a stream",
    "clone": "git clone of a small repository over HTTP",
    "pytest": "pytest on a small project",
}


def _rows(times: dict[str, dict[str, list[float]]]) -> Iterator[dict[str, Any]]:
    for thing, title in TITLES.items():
        if thing not in times:
            continue
        median = {name: statistics.median(took) for name, took in times[thing].items()}
        shown = ", ".join(f"{name} {_time(us)}" for name, us in median.items())
        fast = MEMORY if MEMORY in median else DISK
        if thing == "asked true":
            yield _row(title, median[fast] / 1000, "ms", "the whole run, from the call to its end")
            continue
        yield _row(f"{title} / plain", median[fast] / median[PLAIN], "ratio", shown)
        if fast != DISK:
            yield _row(f"{title}, on disk / plain", median[DISK] / median[PLAIN], "ratio", "")
        if PEER in median and thing == "start true":
            ratio = median[PEER] / median[fast]
            yield _row(f"{title}: sandbox-runtime / Authority", ratio, "ratio", "",
                       f">= {START_RATIO:g}", ratio >= START_RATIO)  # fmt: skip
        elif PEER in median:
            ratio = median[fast] / median[PEER]
            yield _row(f"{title}: Authority / sandbox-runtime", ratio, "ratio", "")
        if thing == "open":
            ok = median[fast] < OPEN_US
            yield _row("mediated open, without the sync", median[fast], "us", "",
                       f"< {OPEN_US:g}", ok)  # fmt: skip
        elif thing in ("judged", "opaque"):
            added = (median[fast] - median[PLAIN]) / 1000
            yield _row(f"added to a request ({thing}), without the sync", added, "ms", "",
                       f"< {REQUEST_MS:g}", added < REQUEST_MS)  # fmt: skip
        elif thing == "model":
            added = (median[fast] - median[PLAIN]) / 1000
            yield _row("added to a model's first byte, without the sync", added, "ms", "")


def _time(us: float) -> str:
    return f"{us / 1000:.1f} ms" if us >= 2000 else f"{us:.0f} us"


def _row(
    name: str, value: float, unit: str, detail: str, target: str = "", ok: bool | None = None
) -> dict[str, Any]:
    return {
        "name": name, "value": round(value, 2), "unit": unit, "target": target, "ok": ok,
        "detail": detail,
    }  # fmt: skip


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows; `quick` takes some twenty seconds."""
    with _place() as place:
        server = subprocess.Popen(
            [sys.executable, "-I", str(HERE / "unmodified_world.py"),
             str(place.root / "repositories")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            ports = server.stdout.readline().split()
            place.policy(*ports)
            times, absent = _measure(place, quick, ports)
        finally:
            server.kill()
            server.communicate()
    rows = list(_rows(times))
    for why in absent:
        rows.append({**_row(f"{PEER} is left out", 0, "", why[-300:]), "value": None})
    return rows


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(*(row[key] for key in ("name", "value", "unit", "target", "ok", "detail")), sep="\t")
