"""Attacks on the kernel from inside: system calls, sockets, execution, with their controls.

Every case runs in a real sandbox, started by root and by an ordinary user, with the kernel's own
Landlock ABI and with it masked down to 2. The control is the same program outside.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

Report = dict[str, Any]

REFUSED = {
    "EPERM": [
        "ptrace",
        "io_uring_setup",
        "bpf",
        "userfaultfd",
        "keyctl",
        "add_key",
        "mount",
        "umount2",
        "pivot_root",
        "chroot",
        "setns",
        "perf_event_open",
        "process_vm_readv",
        "pidfd_getfd",
        "name_to_handle_at",
        "open_by_handle_at",
        "kexec_load",
        "init_module",
        "fanotify_init",
        "quotactl",
        "seccomp",
        "personality",
        "fsopen",
        "open_tree",
        "syslog",
        "sethostname",
        "setuid",
        "setgroups",
        "kcmp",
        "vmsplice",
        "swapon",
        "reboot",
        "memfd_create",
        "ptracer",
    ]
    + ["attach filter", "prlimit64 of 1"]
    + [
        f"unshare {name}"
        for name in ["user", "net", "mount", "pid", "ipc", "uts", "cgroup", "time"]
    ]
    + [f"clone {name}" for name in ["user", "net", "mount", "pid", "ipc", "uts", "cgroup"]],
    "ENOSYS": ["clone3", "unknown"],
    "ENOTTY": ["TIOCSTI", "TIOCLINUX"],
}


@pytest.fixture(scope="session")
def reports(caller: Any) -> dict[tuple[int | None, bool], Report]:
    """What the attacking program reports, by Landlock ABI and loopback."""
    kinds = [(None, False), (2, False), (None, True), (2, True)]
    cases = [
        {"argv": [caller.python, "inside.py"], "landlock_abi": abi, "loopback": loopback}
        for abi, loopback in kinds
    ]
    answers = caller.sandboxes(*cases)
    for answer in answers:
        assert answer.get("code") == 0, answer
    return {
        kind: {**json.loads(answer["out"]), "about": answer}
        for kind, answer in zip(kinds, answers, strict=True)
    }


@pytest.fixture(scope="session")
def outside(make_caller: Any) -> Report:
    """The same program without a sandbox, as an ordinary user: as root it would do harm."""
    with make_caller("user").popen(
        "inside.py", "calls", "executions", "sockets", stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as process:
        out, _ = process.communicate(b"", timeout=60)
    # Before it come the words of the programs that it managed to start.
    report: Report = json.loads(out.splitlines()[-1])
    return report


@pytest.fixture(params=[None, 2], ids=["abi-full", "abi-2"])
def report(request: pytest.FixtureRequest, reports: dict[Any, Report]) -> Report:
    return reports[request.param, False]


@pytest.fixture(params=[None, 2], ids=["abi-full", "abi-2"])
def looped(request: pytest.FixtureRequest, reports: dict[Any, Report]) -> Report:
    return reports[request.param, True]


def test_the_abi_is_masked(reports: dict[Any, Report]) -> None:
    for (abi, _), report in reports.items():
        stated = report["about"]["protection"]["landlock"]["abi"]
        assert stated == (abi or 6) or stated < 6


def test_calls_that_reach_out_are_refused(report: Report) -> None:
    for code, names in REFUSED.items():
        assert {name: report["calls"][name] for name in names} == dict.fromkeys(names, code)


def test_the_other_architecture_is_killed(report: Report) -> None:
    assert report["calls"].get("x32", "killed") == "killed"


def test_harmless_neighbours_are_allowed(report: Report) -> None:
    assert report["calls"]["memfd sealed"] in ("ok", "EINVAL")  # EINVAL before Linux 6.3
    assert report["sockets"]["pair"] == "ok"


def test_outside_many_of_them_succeed(outside: Report) -> None:
    """The control: these fail inside because of us, not because the test calls them wrongly."""
    calls = outside["calls"]
    wanted = {"ptrace", "personality", "memfd_create", "unshare user", "clone user"}
    wanted |= {"add_key", "pidfd_getfd"}
    assert calls["attach filter"] == "EINVAL", "the kernel looked at it"
    assert calls["name_to_handle_at"] in ("ok", "EOVERFLOW")
    assert {name: calls[name] for name in wanted} == dict.fromkeys(wanted, "ok")
    assert calls["clone3"] != "ENOSYS"


def test_nothing_can_be_executed(report: Report) -> None:
    answers = report["executions"]
    assert set(answers.values()) <= {"ENOSYS", "EPERM", "EACCES"}, answers
    assert answers["execve"] == "ENOSYS"
    assert answers["execveat absolute"] == "EPERM"


def test_outside_everything_can_be_executed(outside: Report) -> None:
    answers = outside["executions"]
    names = [
        "execve",
        "execveat absolute",
        "execveat descriptor",
        "execveat here",
        "memfd",
        "loader",
    ]
    names += ["/proc/self/fd", "/proc/self/exe", "subprocess", "posix_spawn"]
    assert {name: answers[name] for name in names} == dict.fromkeys(names, "ok")


def test_only_local_sockets(report: Report) -> None:
    families = {name for name in report["sockets"] if name.isdigit()}
    assert families == {"1"}
    assert report["sockets"]["mptcp"] == report["sockets"]["high bits"] == "EPERM"
    assert report["network"]["public"] == report["network"]["own loopback"] == "EPERM"


def test_with_loopback_only_tcp_and_only_here(looped: Report) -> None:
    sockets = looped["sockets"]
    assert {name: sockets[name] for name in sockets if name.isdigit()} == {
        "1": sockets["1"],
        "2": [1],
        "10": [1],
    }
    assert sockets["mptcp"] == sockets["high bits"] == "EPERM"
    network = looped["network"]
    assert network["own loopback"] == "ok"
    assert network["interfaces"] == ["lo"]
    assert network["public"] == network["link local"] == "ENETUNREACH"


def test_outside_sockets_of_other_families_exist(outside: Report) -> None:
    families = {name for name in outside["sockets"] if name.isdigit()}
    assert {"1", "2", "16"} <= families
    assert 2 in outside["sockets"]["2"]


def test_a_server_of_the_host_is_not_on_the_loopback(caller: Any) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answer = caller.script(
            f"import socket,sys\ns=socket.socket(); print(s.connect_ex(('127.0.0.1',{port})))",
            loopback=True,
        )
        with socket.create_connection(("127.0.0.1", port), 2):
            assert answer["out"].strip() == "111"
