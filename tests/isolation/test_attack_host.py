"""Attacks on the host from inside: ids, files, /proc, descriptors, environment, other processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from authority.isolation.plan import HOST_IDS

Report = dict[str, Any]


@pytest.fixture(scope="session")
def report(caller: Any) -> Report:
    secret = caller.folder / "secret.txt"
    secret.write_text("secret")
    secret.chmod(0o644)
    answer = caller.sandbox(
        argv=[caller.python, "inside.py", "identity", "files"], env={"SECRET": str(secret)}
    )
    assert answer.get("code") == 0, answer
    return {**json.loads(answer["out"]), "about": answer}


def test_the_host_ids(report: Report, caller: Any) -> None:
    """Read from the host's /proc: a mapped id is not enough."""
    ids = report["about"]["host_ids"]
    assert 0 not in ids
    if caller.name == "root":
        assert len(ids) == 1
        assert ids[0] in HOST_IDS
    else:
        assert ids == [caller.drop if caller.drop is not None else os.geteuid()]


def test_two_runs_share_no_id(caller: Any) -> None:
    first, second = caller.sandboxes(*[{"argv": [caller.python, "-I", "-c", ""]}] * 2)
    same = first["host_ids"] == second["host_ids"]
    assert same is (caller.name == "user")


def test_no_id_group_or_capability_is_left(report: Report, caller: Any) -> None:
    identity = report["identity"]
    assert identity["Uid"] == identity["Gid"] == ["1000"] * 4
    if caller.drop is not None or caller.name == "root":
        assert identity["Groups"] == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(identity[name][0], 16) == 0, name
    assert identity["NoNewPrivs"] == ["1"]
    assert identity["Seccomp"] == ["2"]


def test_it_is_alone(report: Report) -> None:
    identity, files = report["identity"], report["files"]
    assert identity["pid"] == 2
    assert identity["session"] == identity["group"] == 2
    assert files["processes"] == [1, 2]
    assert identity["alive after kill(1)"] == "ok"
    assert identity["host name"] == "run"


def test_the_environment_is_clean(report: Report, caller: Any) -> None:
    environment = report["identity"]["environment"]
    assert set(environment) - {"LC_CTYPE"} == {"HOME", "LANG", "PATH", "SECRET", "TMPDIR"}
    assert environment["HOME"] == "/home/agent"


def test_no_descriptor_comes_along(report: Report) -> None:
    """The harness holds an inheritable one open; 3 is the listing of the folder itself."""
    assert report["files"]["descriptors"] == [0, 1, 2, 3]


def test_host_files_are_not_there(report: Report, caller: Any) -> None:
    files = report["files"]
    assert files["shadow"] == files["secret"] == files["sys"] == files["terminal"] == "ENOENT"
    assert Path(caller.folder / "secret.txt").read_text() == "secret"


def test_data_beside_the_program_is_not_there(report: Report) -> None:
    assert report["identity"]["cwd holds"] == ["inside.py"]


@pytest.mark.parametrize(
    "name",
    ["core_pattern", "core_pattern read-write", "sysrq", "max_user_namespaces", "oom_score_adj"],
)
def test_kernel_settings_do_not_open_for_writing(report: Report, name: str) -> None:
    assert report["files"][name] in ("EACCES", "EROFS", "EPERM", "ENOENT")


@pytest.mark.parametrize("name", ["1/environ", "1/mem", "1/root", "1/fd"])
def test_the_supervisor_can_not_be_looked_into(report: Report, name: str) -> None:
    assert report["files"][name] == "EACCES"


def test_writable_is_what_should_be(report: Report) -> None:
    files = report["files"]
    for folder in ("/tmp", "/home/agent", "/dev/shm"):
        assert files[f"write {folder}"] == "ok"
        assert files[f"map executable {folder}"] in ("EPERM", "EACCES")
    for place in ("/", "/usr/lib", "/etc", "/home", "/dev", "cwd"):
        assert files[f"write {place}"] in ("EROFS", "EACCES"), place
    assert files["disk"] in ("EACCES", "EPERM")
    assert files["null"] == files["urandom"] == "ok"


def test_a_working_folder_in_tmp_is_read_only_too(caller: Any) -> None:
    folder = Path("/tmp") / f"authority-cwd-{os.getpid()}-{caller.name}"
    folder.mkdir()
    try:
        answer = caller.script(
            "import os\n"
            "try: open('x','w'); print('written')\n"
            "except OSError as e: print(os.getcwd(), e.strerror)",
            cwd=str(folder),
        )
    finally:
        folder.rmdir()
    assert answer["out"].startswith(str(folder)), answer
    assert "written" not in answer["out"]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def gone_soon(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not alive(pid):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("mode", ["tool", "run"])
@pytest.mark.parametrize("victim", ["gate", "outer", "first"])
def test_a_dead_gate_takes_the_run_with_it(caller: Any, mode: str, victim: str) -> None:
    import signal
    import subprocess

    with caller.popen("parent.py", mode, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline())
        time.sleep(0.05)
        assert alive(pids["first"]), "the control: it lives as long as the gate does"
        os.kill({"gate": process.pid, **pids}[victim], signal.SIGKILL)
        assert gone_soon(pids["first"])
        assert gone_soon(pids["outer"])
        if victim != "gate":
            assert json.loads(process.stdout.readline())["killed"] is True


def test_end_of_file_on_the_channel_kills_the_run(caller: Any) -> None:
    import subprocess

    with caller.popen(
        "parent.py", "close", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pids = json.loads(process.stdout.readline())
        assert alive(pids["first"])
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert gone_soon(pids["first"])
        assert json.loads(process.stdout.readline())["killed"] is True
