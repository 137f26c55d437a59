"""The system's own programs, the same in name spaces and in a machine.

An image holds of the system what the packages of the listed programs need; here they do their work
with it. Each test is one start that does several things, and one list, because each is an image.
"""

from __future__ import annotations

import shutil

import pytest

from gate.lab import OPEN

from .conftest import House

PROGRAMS = ("sh", "git", "perl", "gcc")
pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in PROGRAMS), reason=f"not here: {PROGRAMS}"
)


LISTING = (
    OPEN
    + """\
[process]
exec = ["coreutils", "git", "perl", "gcc"]
[limits]
memory = "256MB"
"""
)


SCRIPT = r"""
set -eu
mkdir -p /tmp/w/a; cd /tmp/w
for n in 1 2 3; do echo line $n >> a/file; done
cat a/file | sort -r | head -n 1 | tr a-z A-Z
sed s/line/row/ a/file | grep -c row; find . -type f | wc -l
date -u -d @0 +%Y; TZ=Asia/Tokyo date -d @0 +%H
tar cf - a | tar tf - | tail -n 1; printf '3\n10\n' | sort -n | xargs echo; awk 'BEGIN { print 6 * 7 }'
export HOME=$PWD
git init -q -b main repository; cd repository
git config user.email a@example.test; git config user.name A
echo one > one; git add one; git commit -q -m first
git clone -q . ../copy; cat ../copy/one; git -C ../copy log --format=%s
perl -MPOSIX -MEncode -e 'print floor(2.5), " ", length(encode("UTF-8", "\x{20ac}")), "\n"'
command -v id >/dev/null && id -u
jq . /dev/null || echo "no jq: $?"
"""
SAID = "LINE 3|3|1|1970|09|a/file|3 10|42|one|first|2 3|1000|no jq: 127"


def test_a_shell_its_programs_git_and_perl(house: House) -> None:
    ran = house.run(["sh", "-c", SCRIPT], LISTING)
    assert ran.out.splitlines() == SAID.split("|"), ran.err
    assert ran.summary["code"] == 0
    assert "not found" in ran.err  # jq is not listed


COMPILE = r"""
set -eu
cd /tmp; cat > hello.c
gcc -O1 -Wall -o hello hello.c -lm
od -A n -t x1 -N 4 hello
./hello || echo "made, and not run: $?"
"""
HELLO = b"""
#include <math.h>
#include <stdio.h>
int main(int n, char **words) { printf("%s %.0f\\n", words[0], sqrt(1764.0 * n)); return 0; }
"""


def test_a_compiler(house: House) -> None:
    """What it makes is a program; nothing that was written in the run is ever executed there."""
    ran = house.start(["sh", "-c", COMPILE], LISTING).started()
    house.lab.input(ran, HELLO, eof=True)
    ran.end()
    assert ran.out.split("\n") == [" 7f 45 4c 46", "made, and not run: 126", ""], ran.err


MODULES = """
import ctypes, lzma, sqlite3, ssl, sys, uuid, zoneinfo, decimal
print(sqlite3.connect(":memory:").execute("select 6 * 7").fetchone()[0])
print(len(lzma.decompress(lzma.compress(bytes(1000)))), decimal.Decimal("1.10"))
print(ssl.create_default_context().cert_store_stats()["x509_ca"] > 10)
print(ctypes.CDLL(None).abs(-3), zoneinfo.ZoneInfo("Asia/Tokyo").key)
print("héllo".encode("koi8-r", "replace"))
"""


def test_python_with_compiled_modules(house: House) -> None:
    ran = house.run(MODULES)
    assert ran.out.splitlines() == ["42", "1000 1.10", "True", "3 Asia/Tokyo", "b'h?llo'"], ran.err
