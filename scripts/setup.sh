#!/usr/bin/env bash
# Makes everything ready that `make demo`, `test`, `lint` and `bench` need. Safe to call each time:
# the second call finds its stamp and returns at once.
#
#   scripts/setup.sh            what the product and its tests need
#   scripts/setup.sh --bench    the peers that the benchmarks compare with, too
#
# 1. System packages (Debian and its kin): installed through apt by root or a sudo that asks for no
#    password; for everybody else the one command that would do it is printed. What only some tests
#    need never stops the set-up.
# 2. A Python >= 3.11 with venv and ensurepip; PYTHON=/path/to/python decides.
# 3. .venv, filled from the lock file: exact versions, hashes checked, no dependency resolved. pip's
#    own configuration (index, proxy, certificates, wheels) is respected.
# 4. This project, editable.
#
# AUTHORITY_NO_APT=1 keeps it away from apt.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

want=dev
[ "${1:-}" = --bench ] && want=bench

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$1"
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

# --- 1. system packages ------------------------------------------------------------------------

required=() # the product does not run without them
useful=()   # single tests and matrix rows do not run without them
command -v bwrap >/dev/null || required+=(bubblewrap)
command -v strace >/dev/null || useful+=(strace)
# Runs in a virtual machine: the hypervisor, and what builds its images.
command -v qemu-system-x86_64 >/dev/null || [ "$(uname -m)" != x86_64 ] || useful+=(qemu-system-x86)
command -v mkfs.erofs >/dev/null || useful+=(erofs-utils)
command -v lz4 >/dev/null || useful+=(lz4)
command -v cpio >/dev/null || useful+=(cpio)
command -v gcc >/dev/null && [ -e /usr/lib/"$(uname -m)"-linux-gnu/libc.a ] || useful+=(gcc libc6-dev)

venv_ready() {
    [ -x .venv/bin/python ] && scripts/as-owner.sh .venv/bin/python -B -c \
        'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# A candidate counts if it starts, is new enough, and can make an environment. Started by root, the
# sandbox gives up root on the host, so an interpreter below a private folder (root's home) could
# not be started inside: it scores lower than one that everybody can reach.
probe='
import os, sys
import ensurepip, venv
assert sys.version_info >= (3, 11)
path = os.path.realpath(sys.executable)
open_to_all = True
while path != "/":
    open_to_all &= bool(os.stat(path).st_mode & 1)
    path = os.path.dirname(path)
print("open" if open_to_all or os.getuid() else "private", os.path.realpath(sys.executable))
'
find_python() {
    local candidate answer fallback=""
    local candidates=(python3.13 python3.12 python3.11 python3 /usr/bin/python3 /usr/local/bin/python3)
    [ -n "${PYTHON:-}" ] && candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null || continue
        answer=$(scripts/as-owner.sh env -u PYTHONHOME -u PYTHONPATH "$candidate" -c "$probe" 2>/dev/null) || continue
        if [ "${answer%% *}" = open ] || [ -n "${PYTHON:-}" ]; then
            printf '%s\n' "${answer#* }"
            return 0
        fi
        fallback=${fallback:-${answer#* }}
    done
    [ -n "$fallback" ] && printf '%s\n' "$fallback"
}

python=""
if ! venv_ready; then
    python=$(find_python) || required+=(python3 python3-venv)
fi

apt_install() { # PACKAGES...; 0 only if apt says that it worked
    local as=()
    command -v apt-get >/dev/null || return 1
    [ -z "${AUTHORITY_NO_APT:-}" ] || return 1
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
        as=(sudo -n)
    fi
    say "installing through apt: $*"
    local install=("${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@")
    "${install[@]}" >/dev/null 2>&1 && return 0
    # A fresh machine has no package lists, or old ones.
    "${as[@]}" apt-get update -qq >/dev/null 2>&1 || say "apt-get update failed; trying what is known"
    "${install[@]}" >&2
}
by_hand() { printf 'sudo apt-get update && sudo apt-get install -y %s' "$*"; }

if [ ${#required[@]} -gt 0 ] || [ ${#useful[@]} -gt 0 ]; then
    if apt_install "${required[@]}" "${useful[@]}"; then
        if ! venv_ready && [ -z "$python" ]; then python=$(find_python) || true; fi
    else
        say "not installed: ${required[*]} ${useful[*]}" >&2
        printf '       %s\n' "$(by_hand "${required[@]}" "${useful[@]}")" >&2
    fi
fi
if ! venv_ready && [ -z "$python" ]; then
    die "no Python >= 3.11 with venv found${PYTHON:+ (PYTHON=$PYTHON)}" \
        "$(by_hand python3 python3-venv)" "or name one: PYTHON=/path/to/python3.12 make test"
fi
command -v bwrap >/dev/null ||
    say "bubblewrap is missing: programs can't be started in the namespace sandbox until it is there"

# --- 2 to 4. the environment ---------------------------------------------------------------------

scripts/as-owner.sh test -w . || die "you can't write to $root" "run this as its owner, or in your own clone"

digest=$(cat "requirements/$want.txt" pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)
stamp=.venv/.authority-$want
mark="$digest $root"

# One at a time: two targets may be started side by side. The lock goes with this process.
exec 9<requirements/dev.txt
flock 9

if venv_ready && [ "$(cat "$stamp" 2>/dev/null)" = "$mark" ]; then
    exit 0
fi

# Settings that would send the packages elsewhere than into .venv; the index and the rest stay.
pip=(scripts/as-owner.sh env -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PYTHONHOME -u PYTHONPATH
    PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip)

if ! venv_ready; then
    say "making .venv with $python"
    scripts/as-owner.sh env -u PYTHONHOME -u PYTHONPATH "$python" -m venv --clear .venv ||
        die "could not make .venv" "$(by_hand python3-venv)"
fi

say "installing requirements/$want.txt (hashes checked)"
if ! "${pip[@]}" install --quiet --require-hashes --no-deps -r "requirements/$want.txt"; then
    if [ "$want" = bench ] && [ -e .venv/.authority-dev ]; then
        say "some peers of the benchmarks can't be installed; their rows will say so"
        exit 0
    fi
    die "pip could not install requirements/$want.txt" \
        "needed: a package index that pip can reach (see 'pip config list'), or its wheels in PIP_FIND_LINKS"
fi
"${pip[@]}" install --quiet --no-build-isolation --no-deps --editable . ||
    die "pip could not install this project into .venv"
scripts/as-owner.sh sh -c 'printf "%s\n" "$1" >"$2"' sh "$mark" "$stamp"
say "ready: .venv ($(.venv/bin/python --version))"
