#!/usr/bin/env bash
# Rewrites requirements/*.txt from pyproject.toml, and agentdojo.txt from agentdojo.in: exact versions
# with the hashes of every platform's files, and nothing about where they were fetched from. Needs
# pip-tools beside the interpreter:
#   .venv/bin/pip install pip-tools && scripts/lock.sh [--upgrade]
#
# The lock is made with the oldest Python that we support; set-up installs it with --no-deps, so a
# later Python gets exactly the same list. pip's own configuration says which index is asked.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
oldest=$(sed -n 's/^requires-python *= *">=\(.*\)"$/\1/p' pyproject.toml)
have=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$have" != "$oldest" ]; then
    echo "lock: made with Python $oldest only (this one is $have): set PYTHON" >&2
    exit 1
fi

compile() { # NAME EXTRAS...
    local name=$1 source=pyproject.toml body extras=() extra
    shift
    [ ! -e "requirements/$name.in" ] || source=requirements/$name.in
    for extra in "$@"; do
        if [[ $extra == -* ]]; then extras+=("$extra"); else extras+=(--extra "$extra"); fi
    done
    body=$(mktemp)
    cp "requirements/$name.txt" "$body" 2>/dev/null || true
    "$python" -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
        --no-emit-options --output-file "$body" "${extras[@]}" "$source"
    {
        echo "# Written by scripts/lock.sh from $source; do not edit."
        cat "$body"
    } >"requirements/$name.txt"
    rm -f "$body"
    echo "requirements/$name.txt: $(grep -c == "requirements/$name.txt") packages"
}

upgrade=()
[ "${1:-}" = --upgrade ] && upgrade=(--upgrade)
compile runtime "${upgrade[@]}"
compile dev "${upgrade[@]}" build test
compile bench "${upgrade[@]}" build test bench
compile agentdojo "${upgrade[@]}"
