"""Other sandboxes, so that the same attacks can be made on them: how each is had, and started.

Rules
- Each is told the same, as far as it has words for it: one folder to read, one to write, no network,
  256 MB, 50 processes. What it has no setting for is its own behaviour, and shows in the table.
- What is installed goes through the registry's ordinary client, into a cache folder of the user, the
  first time that it is asked for by name. What can't be had gives a row that says why.
- Everything starts from the same environment and open descriptors, secrets among them: what a
  sandbox passes on is part of what it does.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from authority import __version__
from authority.errors import AuthorityError
from authority.kernel.canonical import printable

INSTALL_SECONDS = 180
MEMORY_MB = 256
PROCESSES = 50

Wrap = Callable[[Sequence[str]], list[str]]
"""From a program to the command that runs it in the sandbox."""


class NotHere(AuthorityError):
    """A sandbox that can't be had on this machine; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where the attacked program lives: `work` may be read, `out` written, `programs` are its own
    files, `scratch` is for settings. `secret` and `outside` must stay closed. The one host that may be
    asked is `localhost` at `port`."""

    root: Path
    work: Path
    out: Path
    programs: Path
    scratch: Path
    secret: Path
    outside: Path
    port: int = 0


@dataclass(frozen=True)
class Peer:
    """A sandbox: `prepare(place)` makes it ready and gives its version, a note and how to start a
    program in it. Raises `NotHere`. `hosts`: it has words for hosts that may be asked."""

    name: str
    prepare: Callable[[Place], tuple[str, str, Wrap]]
    hosts: bool = False


def interpreter() -> str:
    """The system's Python, or the one below this environment: it must be found in other roots."""
    system = "/usr/bin/python3"
    return system if os.access(system, os.X_OK) else os.path.realpath(sys.executable)


def folders_of_interpreter() -> list[str]:
    """What has to be shown for it, where a sandbox shows nothing by itself."""
    folders = ["/usr"]
    real = os.path.realpath(interpreter())
    if not real.startswith("/usr/"):
        folders.append(sys.base_prefix)
    return folders


def _version(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = (done.stdout or done.stderr).strip().splitlines()
    if done.returncode or not lines:
        raise NotHere(f"{command[0]} does not run")
    return printable(lines[-1].split()[-1], 40)


def _none(_place: Place) -> tuple[str, str, Wrap]:
    return "no sandbox", "the control: every attack must get in", list


def _need(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise NotHere(f"{program} is not installed (apt install {package})")
    return found


def _bubblewrap(place: Place) -> tuple[str, str, Wrap]:
    bwrap = _need("bwrap", "bubblewrap")
    head = [
        bwrap, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev",
        "--proc", "/proc", "--tmpfs", "/tmp", "--bind", str(place.out), str(place.out),  # noqa: S108
        "--chdir", str(place.work), "--",
    ]  # fmt: skip
    note = "the usual recipe: --unshare-all --ro-bind / /, one folder writable"
    return _version([bwrap, "--version"]), note, lambda argv: [*head, *argv]


def _bubblewrap_tight(place: Place) -> tuple[str, str, Wrap]:
    bwrap = _need("bwrap", "bubblewrap")
    head = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    head += ["--cap-drop", "ALL", "--setenv", "PATH", "/usr/bin"]
    for folder in (*folders_of_interpreter(), str(place.programs), str(place.work)):
        head += ["--ro-bind", folder, folder]
    for name in ("lib", "lib64", "bin"):
        if os.path.islink(f"/{name}"):
            head += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            head += ["--ro-bind", f"/{name}", f"/{name}"]
    head += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]  # noqa: S108
    head += ["--bind", str(place.out), str(place.out), "--chdir", str(place.work), "--"]
    note = "no host files but /usr, no environment, no capabilities, a new session"
    return _version([bwrap, "--version"]), note, lambda argv: [*head, *argv]


def cache() -> Path:
    """Where installed peers stay for the next time."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "authority" / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _install(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHere(f"{what} could not be installed: {type(error).__name__}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NotHere(f"{what} could not be installed: {printable(said, 120)}")


def sandbox_runtime(place: Place, domains: Sequence[str] = ("localhost",)) -> tuple[str, str, Wrap]:
    """`@anthropic-ai/sandbox-runtime`, with these domains allowed. Raises `NotHere`."""
    node, npm = _need("node", "nodejs"), _need("npm", "npm")
    for program, package in (("rg", "ripgrep"), ("socat", "socat"), ("bwrap", "bubblewrap")):
        _need(program, package)
    package = "@anthropic-ai/sandbox-runtime"
    folder = cache() / "sandbox-runtime"
    home = folder / "node_modules" / package
    if not (home / "package.json").exists():
        folder.mkdir(exist_ok=True)
        _install([npm, "install", "--no-fund", "--no-audit", "--prefix", str(folder), package],
                 package)  # fmt: skip
    about = json.loads((home / "package.json").read_text(encoding="utf-8"))
    settings = place.scratch / "srt.json"
    settings.write_text(
        json.dumps(
            {
                "network": {"allowedDomains": list(domains), "deniedDomains": []},
                "filesystem": {
                    "denyRead": [str(place.secret.parent)],
                    "allowWrite": [str(place.out)],
                    "denyWrite": [],
                },
            }
        ),
        encoding="utf-8",
    )
    command = [node, str(home / about["bin"]["srt"]), "--settings", str(settings), "-c"]
    note = "one domain; the secret's folder denied by name; one folder writable; has no limits"
    return str(about["version"]), note, lambda argv: [*command, shlex.join(argv)]


_SANDLOCK = """\
import json, sys
from sandlock import Sandbox
given = json.loads(sys.argv[1])
result = Sandbox(**given).run(sys.argv[2:], timeout=60)
sys.stdout.buffer.write(result.stdout)
sys.stderr.buffer.write(result.stderr)
if not result.stdout:
    print(result, file=sys.stderr)
"""


def _sandlock(place: Place) -> tuple[str, str, Wrap]:
    folder = cache() / "sandlock"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _install([sys.executable, "-m", "venv", str(folder)], "an environment for sandlock")
        _install([str(python), "-m", "pip", "install", "-q", "sandlock"], "sandlock")
        (folder / "installed").touch()
    version = _version([str(python), "-c", "import sandlock; print(sandlock.__version__)"])
    readable = [*folders_of_interpreter(), "/lib", "/lib64", "/bin", "/etc", "/proc", "/dev"]
    given = {
        "fs_readable": [*readable, str(place.programs), str(place.work)],
        "fs_writable": [str(place.out), "/tmp"],  # noqa: S108
        "net_allow": [],
        "max_memory": f"{MEMORY_MB}M",
        "max_processes": PROCESSES,
        "clean_env": True,
        "cwd": str(place.work),
    }
    command = [str(python), "-c", _SANDLOCK, json.dumps(given)]
    note = "system folders and one folder readable, one writable, no network, clean environment"
    return version, note, lambda argv: [*command, *argv]


def _authority(place: Place) -> tuple[str, str, Wrap]:
    policy = place.work / "authority.toml"
    policy.write_text(
        f"""version = 1
[filesystem]
read = ["./allowed.txt"]
write = ["./out/**"]
[network]
allow = ["localhost:{place.port}"]
private = ["localhost:{place.port}"]
[labels]
content = ["tcp://localhost:{place.port}"]
[limits]
memory = "{MEMORY_MB}MB"
processes = {PROCESSES}
""",
        encoding="utf-8",
    )
    state = place.scratch / "state"
    main = [sys.executable, "-m", "authority.cli.main"]
    subprocess.run(
        [*main, "init", "--no-policy", "--state", str(state)], capture_output=True, check=True
    )
    run = [*main, "run", "--quiet", "--state", str(state), "--policy", str(policy), "--"]
    note = "one file to read, one folder to write, one host; all through the gate"
    return __version__, note, lambda argv: [*run, *argv]


NONE, AUTHORITY = "none", "authority"
PEERS: tuple[Peer, ...] = (
    Peer(NONE, _none, hosts=True),
    Peer("bubblewrap", _bubblewrap),
    Peer("bubblewrap-tight", _bubblewrap_tight),
    Peer("sandbox-runtime", sandbox_runtime, hosts=True),
    Peer("sandlock", _sandlock),
    Peer(AUTHORITY, _authority, hosts=True),
)
