"""Attacks on files that are mediated call by call: each with the neighbour that works.

What the program may have is `open/ok`; `closed/no` is denied, and `outside` lies beside the folder. The
test fails if the content of one of the others ever comes out.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tests.gate.lab
from tests.gate.lab import Lab, lab_at

from authority.isolation.notify import MEDIATED
from authority.isolation.syscalls import NUMBERS

from .test_calls_runs import USER

POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./**"]
deny = ["./closed/**"]
files = "calls"
[process]
exec = ["python3", "true"]
[limits]
processes = 1500
memory = "2 GB"
[labels]
trusted = ["user", "fs:./**"]
[budgets]
denials = 100_000
requests = 1_000_000
"""
READ_ONLY = POLICY.replace('write = ["./**"]', 'write = ["./out/**"]')
PRELUDE = """\
import ctypes, errno, mmap, os, signal, socket, stat, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    return result if result >= 0 else -ctypes.get_errno()
def name(number): return errno.errorcode.get(-number, number) if number < 0 else 'done'
def tried(work):
    try: work()
    except OSError as e: return errno.errorcode[e.errno]
    return 'done'
X86 = os.uname().machine == 'x86_64'
OPENAT, OPENAT2, STATX = (257, 437, 332) if X86 else (56, 437, 291)
GETDENTS, READLINKAT, UTIMENSAT = (217, 267, 280) if X86 else (61, 78, 88)
MKDIRAT, RENAMEAT2, GETCWD = (258, 316, 79) if X86 else (34, 276, 17)
P = ctypes.c_void_p
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines for a machine that is very busy."""
    monkeypatch.setattr(tests.gate.lab, "SECONDS", 120.0)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        made.work.chmod(0o777)
        lay(made)
        yield made


def lay(lab: Lab) -> None:
    lab.file("open/ok", "allowed")
    lab.file("closed/no", "SECRET")
    (lab.root / "outside").write_text("SECRET")
    (lab.root / "outside").chmod(0o644)
    for folder in ("open", "closed"):
        (lab.work / folder).chmod(0o777)
    (lab.work / "open/ok").chmod(0o666)


def said(lab: Lab, program: str, policy: str = POLICY) -> list[str]:
    ran = lab.run(PRELUDE + program, policy)
    assert "SECRET" not in ran.out, ran.out
    assert ran.summary["code"] == 0, ran.err
    assert "Traceback" not in ran.err, ran.err
    return ran.out.splitlines()


def test_a_path_that_another_thread_changes(lab: Lab) -> None:
    """What was judged is what is opened, whatever stands in memory by then."""
    out = said(
        lab,
        "space = ctypes.create_string_buffer(b'open/ok', 64)\n"
        "over = False\n"
        "def swap():\n"
        "    while not over:\n"
        "        space.value = b'closed/no'; space.value = b'open/ok'\n"
        "threading.Thread(target=swap).start()\n"
        "seen = {}\n"
        "for _ in range(400):\n"
        "    fd = call(OPENAT, -100, space, os.O_RDONLY)\n"
        "    text = name(fd) if fd < 0 else os.read(fd, 100).decode()\n"
        "    seen[text] = seen.get(text, 0) + 1\n"
        "    if fd >= 0: os.close(fd)\n"
        "over = True\n"
        "print('allowed' in seen, sorted(set(seen) - {'allowed', 'ENOENT', 'EACCES'}))\n",
    )
    assert out == ["True []"], out


def test_links_planted_by_the_run(lab: Lab) -> None:
    outside = lab.root / "outside"
    out = said(
        lab,
        f"for n, to in enumerate(({str(outside)!r}, '../outside', '../closed/no', "
        f"'/proc/1/root/etc/shadow',\n"
        "                         '/proc/self/root/../outside', 'loop', '../open/ok')):\n"
        "    link = f'open/l{n}' if to != 'loop' else 'open/loop'\n"
        "    os.symlink(to, link)\n"
        "    print(tried(lambda: open(link).close()))\n"
        "    os.unlink(link)\n"
        "os.symlink('closed', 'way'); print(tried(lambda: open('way/no')), tried(lambda: "
        "os.chdir('way')))\n"
        "os.unlink('way'); os.symlink('open', 'way'); print(open('way/ok').read()); "
        "os.unlink('way')\n",
    )
    assert out == [
        *("ENOENT", "ENOENT", "ENOENT", "EACCES", "ENOENT", "ELOOP", "done"),
        *("ENOENT ENOENT", "allowed"),
    ], out


def test_folders_swapped_for_links_from_outside(lab: Lab) -> None:
    """Somebody on the machine swaps a folder for a link to where the secret lies, again and again."""
    secret = lab.root / "elsewhere"
    secret.mkdir()
    (secret / "f").write_text("SECRET")
    lab.file("swap/f", "allowed")
    over = threading.Event()

    def swap() -> None:
        here, aside = lab.work / "swap", lab.work / "aside"
        while not over.is_set():
            here.rename(aside)
            here.symlink_to(secret)
            here.unlink()
            aside.rename(here)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        out = said(
            lab,
            "seen = set(); end = time.monotonic() + 20\n"
            "for n in range(600):\n"
            "    try: seen.add(open('swap/f').read())\n"
            "    except OSError as e: pass\n"
            "while 'allowed' not in seen and time.monotonic() < end:\n"
            "    try: seen.add(open('swap/f').read())\n"
            "    except OSError as e: pass\n"
            "print(sorted(seen))\n",
        )
    finally:
        over.set()
        thread.join()
    assert out == ["['allowed']"]


def test_more_by_a_descriptor_that_was_handed_in(lab: Lab) -> None:
    """By /proc and by the descriptor itself: a file that may only be read is not changed."""
    before = (lab.work / "open/ok").stat()
    out = said(
        lab,
        "fd = os.open('open/ok', os.O_RDONLY); p = f'/proc/self/fd/{fd}'\n"
        "print(tried(lambda: open(p, 'r+')), tried(lambda: open(p, 'w')), tried(lambda: open(p)))\n"
        "for work in (lambda: os.write(fd, b'x'), lambda: os.ftruncate(fd, 0),\n"
        "             lambda: os.fchmod(fd, 0o600), lambda: os.chmod(p, 0o600),\n"
        "             lambda: os.truncate(p, 0), lambda: os.utime(fd, (1, 1)), lambda: os.utime(p, "
        "(1, 1)),\n"
        "             lambda: os.setxattr(fd, 'user.x', b'y'), lambda: os.setxattr(p, 'user.x', "
        "b'y'),\n"
        "             lambda: os.fchown(fd, 1, 1), lambda: os.chown(p, 1, 1),\n"
        "             lambda: os.link(p, '/tmp/l', follow_symlinks=True), lambda: os.rename(p, "
        "'/tmp/l'),\n"
        "             lambda: os.open('x', os.O_RDONLY, dir_fd=fd)):\n"
        "    print(tried(work))\n"
        "print(os.read(fd, 100).decode())\n"
        "open('out/mine', 'w').close(); w = os.open('out/mine', os.O_RDWR)\n"
        "os.fchmod(w, 0o604); os.utime(w, (3, 5)); os.write(w, b'12'); os.ftruncate(w, 1)\n"
        "s = os.stat('out/mine'); print(oct(s.st_mode & 0o777), s.st_size, open('out/mine').read())\n"
        "t = os.open('/tmp/t', os.O_RDWR | os.O_CREAT, 0o600); os.fchmod(t, 0o640); "
        "os.truncate('/tmp/t', 3)\n"
        "print(oct(os.stat('/tmp/t').st_mode & 0o777), os.stat('/tmp/t').st_size)\n"
        "print(tried(lambda: os.chmod('/dev/null', 0o600)), tried(lambda: os.chmod('/etc/hosts', "
        "0o777)))\n",
        READ_ONLY,
    )
    assert out[0] == "EACCES EACCES EACCES"
    assert "done" not in out[1:15]
    assert out[15:] == ["allowed", "0o604 1 1", "0o640 3", "EPERM EPERM"]
    after = (lab.work / "open/ok").stat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns, after.st_uid) == (
        *(before.st_mode, before.st_size, before.st_mtime_ns, before.st_uid),
    )


def test_directories_of_other_processes_and_out_of_the_folder(lab: Lab) -> None:
    out = said(
        lab,
        "child = os.fork()\n"
        "if not child: os.chdir('open'); time.sleep(60)\n"
        "while not os.readlink(f'/proc/{child}/cwd').endswith('open'): time.sleep(0.01)\n"
        "d = os.open(f'/proc/{child}/cwd', os.O_RDONLY | os.O_DIRECTORY)\n"
        "print(os.read(os.open('ok', os.O_RDONLY, dir_fd=d), 9).decode(), os.listdir(d))\n"
        "print(tried(lambda: os.open('../closed/no', os.O_RDONLY, dir_fd=d)))\n"
        "print(tried(lambda: os.open('../../outside', os.O_RDONLY, dir_fd=d)))\n"
        "os.kill(child, 9); os.fchdir(d); os.chdir('../..')\n"
        "print(sorted(os.listdir('.')), tried(lambda: open('outside')), "
        "os.path.basename(os.getcwd()))\n"
        "os.chdir('work/open'); print(open('ok').read())\n"
        "print(tried(lambda: os.chdir('../closed')), tried(lambda: os.listdir('../closed')))\n",
    )
    assert out[:3] == ["allowed ['ok']", "ENOENT", "ENOENT"]
    assert out[3].startswith("['work'] ENOENT ")
    assert out[4:] == ["allowed", "ENOENT ENOENT"]


def test_ways_to_open_that_would_be_more(lab: Lab) -> None:
    out = said(
        lab,
        "def how(flags, mode, resolve): return ctypes.create_string_buffer(\n"
        "    b''.join(n.to_bytes(8, 'little') for n in (flags, mode, resolve)) + bytes(8), 32)\n"
        "def openat2(path, resolve=0, flags=0, size=24, at=-100, tail=None):\n"
        "    space = how(flags, 0, resolve)\n"
        "    if tail: space[24] = tail\n"
        "    return name(call(OPENAT2, at, path, space, ctypes.c_size_t(size)))\n"
        "d = os.open('open', os.O_RDONLY)\n"
        "print(openat2(b'ok', at=d), openat2(b'ok', 8, at=d), openat2(b'../open/ok', 8, at=d),\n"
        "      openat2(b'/etc/passwd', 8, at=d), openat2(b'ok', 16, at=d), openat2(b'ok', 1, at=d),\n"
        "      openat2(b'ok', 4, at=d), openat2(b'ok', 32, at=d))\n"
        "print(openat2(b'open/ok', size=8), openat2(b'open/ok', size=32), openat2(b'open/ok', "
        "size=32, tail=b'x'),\n"
        "      openat2(b'open/ok', 1 << 40), openat2(b'open/ok', size=1 << 40))\n"
        "os.symlink('ok', 'open/l'); print(openat2(b'l', 4, at=d), openat2(b'l', at=d)); "
        "os.unlink('open/l')\n"
        "print(tried(lambda: os.open('open/ok', os.O_PATH)), tried(lambda: os.open('closed/no', "
        "os.O_PATH)),\n"
        "      tried(lambda: os.open('open', os.O_PATH)), tried(lambda: os.open('open', "
        "os.O_TMPFILE | os.O_RDWR)),\n"
        "      tried(lambda: os.mkfifo('open/p')), tried(lambda: os.mknod('open/n', stat.S_IFCHR, "
        "1)))\n",
    )
    assert out == [
        "done done EXDEV EXDEV ENOSYS ENOSYS done EAGAIN",
        "EINVAL done E2BIG EINVAL E2BIG",
        "ELOOP done",
        "ENOTSUP ENOENT done ENOTSUP EPERM EPERM",
    ]


def test_names_across(lab: Lab) -> None:
    out = said(
        lab,
        "open('open/a', 'w').write('a'); open('/tmp/b', 'w').write('b')\n"
        "print(tried(lambda: os.rename('open/a', '/tmp/a')), tried(lambda: os.rename('/tmp/b', "
        "'open/b')),\n"
        "      tried(lambda: os.link('open/a', '/tmp/a')), tried(lambda: os.link('/tmp/b', "
        "'open/b')))\n"
        "print(tried(lambda: os.rename('open/a', 'closed/a')), tried(lambda: os.rename('closed/no', "
        "'open/no')),\n"
        "      tried(lambda: os.link('closed/no', 'open/no')), tried(lambda: os.rename('closed', "
        "'opened')))\n"
        "print(tried(lambda: os.rename('open', 'open/in')), tried(lambda: os.rmdir('.')),\n"
        "      tried(lambda: os.rmdir(os.getcwd())), tried(lambda: os.rename(os.getcwd(), "
        "'/tmp/w')))\n"
        "print(tried(lambda: os.rename('open/a', 'open/c')), open('open/c').read(), tried(lambda: "
        "os.unlink('open/c')))\n",
    )
    assert out[0] == "EXDEV EXDEV EXDEV EXDEV"
    assert "done" not in out[1]
    assert out[2] == "EINVAL EINVAL EBUSY EXDEV"
    assert out[3] == "done a done"
    assert (lab.work / "closed/no").exists()


def test_pointers_and_paths_that_lead_nowhere(lab: Lab) -> None:
    out = said(
        lab,
        "bad = [P(8), P(0), P((1 << 64) - 4096), P((1 << 63) + 5), P(1 << 46)]\n"
        "print({name(call(OPENAT, -100, one, 0)) for one in bad})\n"
        "print({name(call(STATX, -100, b'open/ok', 0, 0x7ff, one)) for one in bad})\n"
        "print({name(call(READLINKAT, -100, one, one, 10)) for one in bad})\n"
        "print({name(call(OPENAT2, -100, b'open/ok', one, 24)) for one in bad})\n"
        "d = os.open('open', 0); print({name(call(GETDENTS, d, one, 4096)) for one in bad})\n"
        "print(name(call(GETDENTS, d, ctypes.create_string_buffer(8), 8)), 'ok' in os.listdir(d))\n"
        "edge = mmap.mmap(-1, 4096); edge[4090:] = b'open/o'\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(edge)); libc.munmap(P(at + 4096), 4096)\n"
        "long = 'x' * 255\n"
        "print(tried(lambda: open('a' * 5000)), tried(lambda: open('a' * 256)),\n"
        "      tried(lambda: open('open/' + './' * 2000 + 'ok')), tried(lambda: "
        "open('open/' + './' * 2100 + 'ok')),\n"
        "      tried(lambda: open('open/' + long)), tried(lambda: open('')), tried(lambda: "
        "open('open/ok/')),\n"
        "      tried(lambda: open('open/ok/x')), tried(lambda: open('open/ok/..')), tried(lambda: "
        "open('open/\\x01')))\n"
        "print(name(call(OPENAT, 77, b'x', 0)), name(call(OPENAT, -5, b'x', 0)), name(call(OPENAT, "
        "0, b'x', 0)),\n"
        "      name(call(MKDIRAT, -100, b'/', 0)), name(call(OPENAT, 77, "
        "os.fsencode(os.path.abspath('open/ok')), 0)))\n"
        "print(open('open/ok').read())\n",
    )
    assert out[:5] == ["{'EFAULT'}"] * 5, out
    assert out[5] == "EINVAL True"
    assert out[6] == (
        "ENAMETOOLONG ENAMETOOLONG done ENAMETOOLONG ENOENT ENOENT ENOTDIR ENOTDIR ENOTDIR EILSEQ"
    )
    assert out[7] == "EBADF EBADF ENOTDIR EEXIST done"
    assert out[8] == "allowed"


def test_what_was_handed_in_is_no_program(lab: Lab) -> None:
    """It can't be mapped as code, executed, or given to the loader; the listed program can."""
    true = Path("/usr/bin/true").read_bytes()
    (lab.work / "open/tool").write_bytes(true)
    (lab.work / "open/tool").chmod(0o777)
    loader = "/lib64/ld-linux-x86-64.so.2"
    out = said(
        lab,
        "fd = os.open('open/tool', os.O_RDONLY)\n"
        "print(tried(lambda: mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, "
        "mmap.PROT_READ | mmap.PROT_EXEC)))\n"
        "def run(*argv):\n"
        "    try: return subprocess.run(argv, pass_fds=[fd], capture_output=True).returncode\n"
        "    except OSError as e: return errno.errorcode[e.errno]\n"
        "print(run(os.path.abspath('open/tool')), run(f'/proc/self/fd/{fd}'))\n"
        f"print(run({loader!r}, os.path.abspath('open/tool')) != 0, run('/usr/bin/true'))\n",
    )
    assert out[0] == "EPERM"
    assert set(out[1].split()) <= {"ENOENT", "EACCES"}
    assert out[2] == "True 0"


def test_a_thousand_threads(lab: Lab) -> None:
    out = said(
        lab,
        "threading.stack_size(65536); ready = threading.Barrier(1000); seen = []\n"
        "def work(n):\n"
        "    ready.wait()\n"
        "    seen.append((open('open/ok').read(), tried(lambda: open('closed/no')), "
        "os.stat('open').st_mode))\n"
        "all = [threading.Thread(target=work, args=(n,)) for n in range(1000)]\n"
        "for t in all: t.start()\n"
        "for t in all: t.join()\n"
        "print(len(seen), len(set(seen)), seen[0][:2])\n",
    )
    assert out == ["1000 1 ('allowed', 'ENOENT')"]


def test_processes_that_die_in_the_middle(lab: Lab) -> None:
    out = said(
        lab,
        "for n in range(30):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        signal.alarm(60)\n"
        "        while True:\n"
        "            open('open/ok').close(); open(f'open/t{n}', 'w').close(); "
        "os.unlink(f'open/t{n}')\n"
        "    time.sleep(0.02 + n / 1000); os.kill(child, 9); os.waitpid(child, 0)\n"
        "print(open('open/ok').read(), sorted(x for x in os.listdir('open') if x[0] == 'o'))\n",
    )
    assert out == ["allowed ['ok']"]


def test_signals_do_not_repeat_what_was_done(lab: Lab) -> None:
    out = said(
        lab,
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
        "def insist(work):\n"
        "    # A call that was not received yet may be interrupted; then nothing was done.\n"
        "    while True:\n"
        "        try: return work()\n"
        "        except InterruptedError: pass\n"
        "for n in range(150):\n"
        "    insist(lambda: os.mkdir(f'open/s{n}')); insist(lambda: os.rmdir(f'open/s{n}'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print('through')\n",
    )
    assert out == ["through"]


def test_nothing_is_left_at_the_stand_in(lab: Lab) -> None:
    """Natively there are directories alone, and the run can make nothing there."""
    out = said(
        lab,
        "os.chdir('open'); s = socket.socket(socket.AF_UNIX)\n"
        "print(tried(lambda: s.bind('sock')))\n"
        "t = socket.socket(socket.AF_UNIX); print(tried(lambda: t.bind('/tmp/sock')))\n"
        "print(sorted(os.listdir('.'))[:1])\n",
    )
    assert out[0] in ("EACCES", "EPERM") or os.geteuid(), out
    assert out[1:] == ["done", "['ok']"]


def test_the_gate_is_killed(lab: Lab) -> None:
    """Its runs end with it, and nothing that they ask meanwhile is done."""
    with lab_at() as other:
        other.work.chmod(0o777)
        lay(other)
        ran = other.start(
            "import os, time\nprint('on', flush=True)\n"
            "n = 0\n"
            "while True:\n"
            "    open('open/ok').read(); n += 1\n"
            "    fd = os.open('/tmp/x', os.O_CREAT | os.O_RDWR)\n",
            POLICY,
        ).started()
        ran.said("on")
        pids = descendants(other)
        assert pids
        other.kill()
        deadline = threading.Event()
        for _ in range(200):
            if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
                break
            deadline.wait(0.1)
        assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def descendants(lab: Lab) -> list[int]:
    """Processes that stand in the lab's workspace, in a run: its working folder is a stand-in."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            inside = os.stat(f"/proc/{entry}/cwd")
            where = os.readlink(f"/proc/{entry}/cwd")
        except OSError:
            continue
        if where == str(lab.work) and inside.st_dev != lab.work.stat().st_dev:
            found.append(int(entry))
    return found


AS_USER = """\
import sys
sys.path.insert(0, sys.argv[1])
from tests.compat import test_attack_calls as attacks
from tests.gate.lab import lab_at
with lab_at() as lab:
    attacks.lay(lab)
    for name in sys.argv[2:]:
        getattr(attacks, name)(lab)
        print(name)
"""


def test_the_same_of_an_ordinary_user() -> None:
    """There the run's files belong to the gate's own user, so no owner's right stands in between."""
    if os.geteuid():
        pytest.skip("the other tests are by an ordinary user already")
    names = [
        "test_a_path_that_another_thread_changes",
        "test_links_planted_by_the_run",
        "test_more_by_a_descriptor_that_was_handed_in",
        "test_directories_of_other_processes_and_out_of_the_folder",
        "test_names_across",
        "test_what_was_handed_in_is_no_program",
        "test_nothing_is_left_at_the_stand_in",
        "test_pointers_and_paths_that_lead_nowhere",
        "test_a_program_that_hides_its_memory",
        "test_calls_with_random_arguments",
    ]
    done = subprocess.run(
        [sys.executable, "-c", AS_USER, str(Path(__file__).parents[2]), *names],
        capture_output=True, text=True, user=USER, group=USER, extra_groups=[], timeout=240,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}, cwd="/", check=False,
    )  # fmt: skip
    if "Permission denied" in done.stderr and not done.stdout:
        pytest.skip("this interpreter can't be started by another user")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == names


def test_calls_with_random_arguments(lab: Lab) -> None:
    """Whatever a program passes, the gate answers and goes on."""
    table = NUMBERS[platform.machine()]
    numbers = {name: table[name] for name in sorted(MEDIATED) if name in table}
    ran = lab.run(
        PRELUDE + f"numbers = {numbers!r}\n"
        "import random\n"
        "chance = random.Random(7)\n"
        "os.makedirs('fuzz/in/in', exist_ok=True); os.chdir('fuzz/in')\n"
        "fds = [os.open('.', 0), os.open('f', os.O_RDWR | os.O_CREAT), os.open('/tmp', 0), "
        "*os.pipe()]\n"
        "paths = [b'f', b'in', b'../ok', b'../../closed/no', b'/proc/self/fd/%d' % fds[1], b'l', "
        "b'/tmp/x',\n"
        "         b'..', b'', b'/', b'in/../f', b'\\xff\\xfe', b'a\\nb', b'x' * 300, b'./f/', "
        "b'/dev/null', b'n' * 5000,\n"
        "         b'fs:f', b'%41', b'user.x', b'/proc/self/cwd/f', b'in/.', b'user.\\xff']\n"
        "keep = []\n"
        "def pointer():\n"
        "    kind = chance.randrange(8)\n"
        "    if kind == 0: return P(chance.choice([0, 8, 1 << 46, (1 << 64) - 8, (1 << 63) + 1]))\n"
        "    data = chance.choice(paths) if kind < 5 else chance.randbytes(chance.choice([8, 24, "
        "64]))\n"
        "    keep.append(ctypes.create_string_buffer(data, max(len(data) + 1, 512)))\n"
        "    return ctypes.cast(keep[-1], P)\n"
        "def argument():\n"
        "    kind = chance.randrange(6)\n"
        "    if kind < 3: return pointer()\n"
        "    if kind == 3: return ctypes.c_long(chance.choice([*fds, -100, -1, 99]))\n"
        "    if kind == 4: return ctypes.c_long(chance.choice([0, 1, 2, 0x100, 0x200, 0x400, "
        "0x1000, 0o644, 64, 4096]))\n"
        "    return ctypes.c_ulong(chance.getrandbits(64))\n"
        "seen = set()\n"
        "home = os.getcwd()\n"
        "for n in range(6000):\n"
        "    which = chance.choice(list(numbers))\n"
        "    if which == 'chdir': os.chdir(home)\n"
        "    shape = [argument() for _ in range(6)]\n"
        "    if chance.random() < 0.7 and 'at' in which or which in ('statx', 'openat2'):\n"
        "        shape[0], shape[1] = ctypes.c_long(chance.choice([-100, fds[0]])), pointer()\n"
        "    elif chance.random() < 0.7: shape[0] = pointer()\n"
        "    result = call(numbers[which], *shape)\n"
        "    if result > 20 and which in ('open', 'openat', 'openat2', 'creat'): os.close(result)\n"
        "    seen.add(which); keep.clear()\n"
        "print(len(seen) == len(numbers))\n",
        POLICY,
    )
    trouble = [e["text"] for e in ran.events if e["event"] == "trouble"]
    assert ran.out == "True\n", (ran.err, trouble)
    assert not trouble
    assert (lab.work / "closed/no").read_text() == "SECRET"
    lay(lab)
    assert lab.run("print(open('open/ok').read())", POLICY).out == "allowed\n"


def test_a_program_that_hides_its_memory(lab: Lab) -> None:
    """It gets nothing, or what it may have; nobody else is disturbed."""
    out = said(
        lab,
        "child = os.fork()\n"
        "if not child:\n"
        "    libc.prctl(4, 0, 0, 0, 0)\n"
        "    got = tried(lambda: open('open/ok')), tried(lambda: open('closed/no'))\n"
        "    os._exit(0 if got[0] in ('done', 'EACCES') and got[1] in ('ENOENT', 'EACCES') else 1)\n"
        "print(os.waitpid(child, 0)[1], open('open/ok').read())\n",
    )
    assert out == ["0 allowed"]
