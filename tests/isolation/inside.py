"""The program that attacks its own sandbox: tries things and prints what came of each, as JSON.

Runs inside (and, as a control, outside). Standard library alone, so that any Python can run it.
"ok" stands for success, otherwise the errno's name.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

X86 = os.uname().machine == "x86_64"
NUMBERS = {
    "ptrace": (101, 117), "io_uring_setup": (425, 425), "bpf": (321, 280),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "perf_event_open": (298, 241), "process_vm_readv": (310, 270),
    "pidfd_getfd": (438, 438), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "kexec_load": (246, 104), "init_module": (175, 105), "fanotify_init": (300, 262),
    "quotactl": (179, 60), "seccomp": (317, 277), "clone3": (435, 435), "personality": (135, 92),
    "prlimit64": (302, 261), "fsopen": (430, 430), "open_tree": (428, 428), "syslog": (103, 116),
    "sethostname": (170, 161), "setuid": (105, 146), "capset": (126, 91), "kcmp": (312, 272),
    "memfd_create": (319, 279), "execveat": (322, 281), "clone": (56, 220), "vmsplice": (278, 75),
    "process_madvise": (440, 440), "swapon": (167, 224), "reboot": (169, 142),
    "move_pages": (279, 239), "landlock_create_ruleset": (444, 444), "prctl": (157, 167),
}  # fmt: skip


def number(name):
    return NUMBERS[name][0 if X86 else 1]


def tell(function):
    try:
        function()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "ok"


def call(name_or_number, *arguments):
    n = number(name_or_number) if isinstance(name_or_number, str) else name_or_number
    made = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(n), *made)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def in_child(function):
    """Tries something in a child whose success would replace or end it: 'ok' or an errno."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        answer = tell(function)
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        answer = file.read().decode()
    _, status = os.waitpid(pid, 0)
    if not answer:
        answer = "killed" if os.WIFSIGNALED(status) else "ok"
    return answer


def quiet():
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def executed(function):
    def attempt():
        quiet()
        function()

    return in_child(attempt)


def empty(*_):
    return (ctypes.c_char_p * 1)(None)


def words(*arguments):
    return (ctypes.c_char_p * (len(arguments) + 1))(*arguments, None)


def executions():
    python = os.path.realpath(sys.executable)
    version = [python, "--version"]
    plain = words(python.encode(), b"--version")

    def by_descriptor():
        fd = os.open(python, os.O_RDONLY)
        call("execveat", fd, b"", plain, empty(), 0x1000)

    def by_memfd():
        fd = call("memfd_create", b"x", 0)
        with open(python, "rb") as file:
            while part := file.read(1 << 20):
                os.write(fd, part)
        os.execv(f"/proc/self/fd/{fd}", version)

    def by_proc():
        fd = os.open(python, os.O_RDONLY)
        os.execv(f"/proc/self/fd/{fd}", version)

    def by_temporary():
        path = os.path.join(tempfile.gettempdir(), f"copy-{os.getpid()}")
        with open(path, "w") as file:
            file.write("#!/bin/sh\n")
        os.chmod(path, 0o755)
        try:
            os.execv(path, [path])
        finally:
            os.unlink(path)

    loader = next(
        path
        for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld.so")
        if os.path.exists(path)
    )
    return {
        "execve": executed(lambda: os.execv(python, version)),
        "execveat absolute": executed(
            lambda: call("execveat", 4000, python.encode(), plain, empty(), 0x1000)
        ),
        "execveat descriptor": executed(by_descriptor),
        "execveat here": executed(
            lambda: call("execveat", -100, python.encode(), plain, empty(), 0)
        ),
        "memfd": executed(by_memfd),
        "/proc/self/fd": executed(by_proc),
        "/proc/self/exe": executed(lambda: os.execv("/proc/self/exe", version)),
        "/proc/1/exe": executed(lambda: os.execv("/proc/1/exe", version)),
        "loader": executed(lambda: os.execv(loader, [loader, python, "--version"])),
        "temporary script": executed(by_temporary),
        "subprocess": tell(lambda: subprocess.run(version, check=False, stdout=subprocess.DEVNULL)),
        "posix_spawn": tell(lambda: os.waitpid(os.posix_spawn(python, version, {}), 0)),
    }


def sockets():
    found = {}
    for family in range(46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            answer = tell(lambda family=family, kind=kind: socket.socket(family, kind).close())
            if answer == "ok":
                found.setdefault(family, []).append(int(kind))
    found["mptcp"] = tell(lambda: socket.socket(2, 1, 262).close())
    found["pair"] = tell(lambda: [s.close() for s in socket.socketpair()])
    found["high bits"] = tell(
        lambda: os.close(call(41 if X86 else 198, (1 << 32) | 2, socket.SOCK_DGRAM, 0))
    )
    return found


def reach(address, port, family=socket.AF_INET):
    def attempt():
        with socket.socket(family) as one:
            one.settimeout(1)
            one.connect((address, port))

    try:
        return tell(attempt)
    except TimeoutError:
        return "timeout"


def network():
    def serve():
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            with socket.create_connection(server.getsockname(), 2) as client:
                client.sendall(b"x")

    return {
        "own loopback": tell(serve),
        "public": reach("198.51.100.1", 80),
        "link local": reach("169.254.169.254", 80),
        "host": reach("127.0.0.1", int(os.environ.get("HOST_PORT", "9"))),
        "interfaces": sorted(
            line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line
        ),
    }


def calls():
    attr = ctypes.create_string_buffer(256)
    pid1 = ctypes.create_string_buffer(16)
    found = {
        "ptrace": in_child(lambda: call("ptrace", 0, 0, 0, 0)),
        "io_uring_setup": tell(lambda: call("io_uring_setup", 1, attr)),
        "bpf": tell(lambda: call("bpf", 5, attr, 72)),
        "userfaultfd": tell(lambda: call("userfaultfd", 1)),
        "keyctl": tell(lambda: call("keyctl", 0, -4, 0)),
        "add_key": tell(lambda: call("add_key", b"user", b"a", b"b", 1, -4)),
        "mount": tell(lambda: call("mount", b"x", b"/tmp", b"tmpfs", 0, None)),
        "umount2": tell(lambda: call("umount2", b"/tmp", 2)),
        "pivot_root": tell(lambda: call("pivot_root", b"/tmp", b"/tmp")),
        "chroot": tell(lambda: call("chroot", b"/tmp")),
        "setns": tell(lambda: call("setns", os.open("/proc/self/ns/net", 0), 0)),
        "perf_event_open": tell(lambda: call("perf_event_open", attr, 0, -1, -1, 0)),
        "process_vm_readv": tell(
            lambda: call("process_vm_readv", os.getpid(), attr, 0, attr, 0, 0)
        ),
        "pidfd_getfd": tell(lambda: call("pidfd_getfd", os.pidfd_open(os.getpid()), 0, 0)),
        "name_to_handle_at": tell(lambda: call("name_to_handle_at", -100, b"/", attr, pid1, 0)),
        "open_by_handle_at": tell(lambda: call("open_by_handle_at", -100, attr, 0)),
        "kexec_load": tell(lambda: call("kexec_load", 0, 0, None, 0)),
        "init_module": tell(lambda: call("init_module", attr, 8, b"")),
        "fanotify_init": tell(lambda: call("fanotify_init", 0, 0)),
        "quotactl": tell(lambda: call("quotactl", 0, None, 0, None)),
        "seccomp": tell(lambda: call("seccomp", 1, 8, attr)),
        "clone3": tell(lambda: call("clone3", attr, 88)),
        "personality": tell(lambda: call("personality", 0x0400000)),
        "prlimit64 of 1": tell(lambda: call("prlimit64", 1, 7, None, pid1)),
        "fsopen": tell(lambda: call("fsopen", b"tmpfs", 0)),
        "open_tree": tell(lambda: call("open_tree", -100, b"/", 1)),
        "syslog": tell(lambda: call("syslog", 10, None, 0)),
        "sethostname": tell(lambda: call("sethostname", b"x", 1)),
        "setuid": tell(lambda: os.setuid(0)),
        "setgroups": tell(lambda: os.setgroups([0])),
        "kcmp": tell(lambda: call("kcmp", os.getpid(), 1, 0, 0, 0)),
        "vmsplice": tell(lambda: call("vmsplice", 1, attr, 0, 0)),
        "swapon": tell(lambda: call("swapon", b"/tmp/x", 0)),
        "reboot": tell(lambda: call("reboot", 0, 0, 0, None)),
        "unknown": tell(lambda: call(9999)),
        "memfd_create": tell(lambda: os.close(call("memfd_create", b"x", 0))),
        "memfd sealed": tell(lambda: os.close(call("memfd_create", b"x", 8))),
        "TIOCSTI": tell(lambda: fcntl.ioctl(0, 0x5412, b"x")),
        "TIOCLINUX": tell(lambda: fcntl.ioctl(0, 0x541C, b"\2")),
        "ptracer": tell(lambda: call("prctl", 0x59616D61, -1, 0, 0, 0)),
        "attach filter": tell(
            lambda: socket.socketpair()[0].setsockopt(1, 26, b"\1\0" + bytes(14))
        ),
    }
    for name, flag in {
        "user": 0x10000000, "net": 0x40000000, "mount": 0x20000, "pid": 0x20000000,
        "ipc": 0x08000000, "uts": 0x04000000, "cgroup": 0x02000000, "time": 0x80,
    }.items():  # fmt: skip
        found[f"unshare {name}"] = in_child(lambda flag=flag: call("unshare", flag))
        if name != "time":
            found[f"clone {name}"] = in_child(
                lambda flag=flag: call("clone", flag | signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)
            )
    if X86:
        found["x32"] = in_child(lambda: call(0x40000000 + 39))
    return found


def opened(path, flags=os.O_RDONLY):
    return tell(lambda: os.close(os.open(path, flags, 0o600)))


def files():
    secret = os.environ.get("SECRET", "/etc/shadow")
    found = {
        "shadow": opened("/etc/shadow"),
        "secret": opened(secret),
        "core_pattern": opened("/proc/sys/kernel/core_pattern", os.O_WRONLY),
        "core_pattern read-write": opened("/proc/sys/kernel/core_pattern", os.O_RDWR),
        "sysrq": opened("/proc/sysrq-trigger", os.O_WRONLY),
        "max_user_namespaces": opened("/proc/sys/user/max_user_namespaces", os.O_WRONLY),
        "oom_score_adj": opened("/proc/self/oom_score_adj", os.O_WRONLY),
        "1/environ": opened("/proc/1/environ"),
        "1/mem": opened("/proc/1/mem", os.O_RDWR),
        "1/root": opened("/proc/1/root/etc/passwd"),
        "1/fd": tell(lambda: os.listdir("/proc/1/fd")),
        "kcore": opened("/proc/kcore"),
        "sys": opened("/sys"),
        "terminal": opened("/dev/tty", os.O_RDWR),
        "disk": tell(lambda: os.mknod("/tmp/disk", 0o600 | 0o60000, os.makedev(8, 0))),
        "null": opened("/dev/null", os.O_RDWR),
        "urandom": opened("/dev/urandom"),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "devices": sorted(os.listdir("/dev")),
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
    }
    for folder in ("/", "/usr/lib", "/etc", "/home", "/dev", "/run/authority", os.getcwd()):
        path = os.path.join(folder, "written")
        found[f"write {folder}" if folder != os.getcwd() else "write cwd"] = opened(
            path, os.O_WRONLY | os.O_CREAT
        )
    for folder in ("/tmp", "/home/agent", "/dev/shm"):
        path = os.path.join(folder, "written")
        found[f"write {folder}"] = opened(path, os.O_WRONLY | os.O_CREAT)

        def execute(path=path):
            with open(path, "r+b") as file:
                file.truncate(4096)
                mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)

        found[f"map executable {folder}"] = tell(execute)
    return found


def identity():
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":", 1) for line in file if ":" in line)
    names = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    found = {name: status[name].split() for name in (*names, "NoNewPrivs", "Seccomp")}
    found["pid"] = os.getpid()
    found["session"] = os.getsid(0)
    found["group"] = os.getpgid(0)
    found["host name"] = os.uname().nodename
    found["cwd"] = os.getcwd()
    found["cwd holds"] = sorted(os.listdir("."))
    found["environment"] = dict(os.environ)
    found["signals"] = [name for name in ("SIGPIPE", "SIGINT", "SIGXFSZ") if ignored(name)]
    found["alive after kill(1)"] = tell(lambda: os.kill(1, 9))
    return found


def ignored(name):
    with open("/proc/self/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn"))
    # Python itself ignores SIGPIPE and SIGXFSZ at its start; a parent's SIGINT would stay ignored.
    return name == "SIGINT" and bool(mask & 1 << (getattr(signal, name) - 1))


if __name__ == "__main__":
    signal.alarm(30)
    if os.geteuid() == 0:
        sys.exit("not as root: without a sandbox these attacks would succeed")
    asked = sys.argv[1:] or ["identity", "files", "calls", "executions", "sockets", "network"]
    print(json.dumps({name: globals()[name]() for name in asked}), flush=True)
