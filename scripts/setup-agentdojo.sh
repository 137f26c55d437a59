#!/usr/bin/env bash
# Makes .venv-agentdojo, the environment of the benchmark AgentDojo (requirements/agentdojo.txt, hashes
# checked): it drags in some seventy packages that nothing else here needs. Nothing of this project
# is installed there. The second call finds its stamp and returns at once. Wants .venv (setup.sh) first.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

venv=.venv-agentdojo
mark="$(cat requirements/agentdojo.txt scripts/setup-agentdojo.sh | sha256sum | cut -d' ' -f1) $root"
[ "$(cat "$venv/.authority-stamp" 2>/dev/null)" = "$mark" ] && exit 0

echo "setup: installing requirements/agentdojo.txt (hashes checked)" >&2
scripts/as-owner.sh env -u PYTHONHOME -u PYTHONPATH .venv/bin/python -m venv --clear "$venv"
scripts/as-owner.sh env -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PYTHONHOME -u PYTHONPATH \
    PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$venv/bin/python" -m pip install --quiet --require-hashes --no-deps -r requirements/agentdojo.txt
scripts/as-owner.sh sh -c 'printf "%s\n" "$1" >"$2"' sh "$mark" "$venv/.authority-stamp"
