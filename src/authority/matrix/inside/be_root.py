"""Root's own order: in place of the launcher, run the program as it is, as root, with the channel.

The program is one of the matrix's own files, and a child of this very interpreter runs it: to start
another takes an emulated machine as long as an attack.

What it prints goes over the channel as the supervisor would send it, and so does its end. It has the
channel itself on descriptor 5, and nobody between it and the host.
"""

import marshal
import os
import struct
import sys

CONTROL, CHANNEL = 4, 5


def frame(payload: bytes) -> None:
    view = memoryview(struct.pack(">II", 4 + len(payload), 0) + payload)
    while view:
        view = view[os.write(CHANNEL, view) :]


def exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(CONTROL, size - len(data))
        if not part:
            os._exit(125)
        data += part
    return data


configuration = marshal.loads(exactly(int.from_bytes(exactly(4), "big")))  # noqa: S302
argv = [os.fsdecode(word) for word in configuration["argv"]]
readable, writable = os.pipe()
os.write(CONTROL, b"S")
frame(b"\x07")
child = os.fork()
if not child:
    os.dup2(writable, 1)
    os.dup2(writable, 2)
    for fd in (readable, writable, CONTROL):
        os.close(fd)
    sys.argv = argv[1:]
    sys.path.insert(0, os.path.dirname(argv[1]))
    with open(argv[1], encoding="utf-8") as program:
        compiled = compile(program.read(), argv[1], "exec")
    exec(compiled, {"__name__": "__main__"})  # noqa: S102
    sys.exit()
os.close(writable)
os.close(CONTROL)
while part := os.read(readable, 8192):
    frame(b"\x03\x01" + part)
_, status = os.waitpid(child, 0)
code = os.waitstatus_to_exitcode(status)
frame(b"\x04" + struct.pack(">ii", max(code, 0), max(-code, 0)))
sys.exit()
