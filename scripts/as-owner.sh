#!/usr/bin/env bash
# Runs a command as the owner of this folder when root calls it in somebody else's folder
# (`sudo make test`, a container with a mounted checkout), so that nothing owned by root is left
# there. In every other case the command simply runs.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
owner=$(stat -c %u "$root")
group=$(stat -c %g "$root")

if [ "$(id -u)" -ne 0 ] || [ "$owner" -eq 0 ]; then
    exec "$@"
fi
if ! command -v setpriv >/dev/null; then
    echo "setup: run this as the owner of $root (uid $owner), or install util-linux" >&2
    exit 1
fi
groups=--clear-groups
home=""
if entry=$(getent passwd "$owner"); then
    groups=--init-groups
    home=$(cut -d: -f6 <<<"$entry")
fi
as_owner() { setpriv --reuid="$owner" --regid="$group" $groups "$@"; }
# A home that the owner cannot write (root's, or none at all) would make pip and others complain.
if [ -z "$home" ] || ! as_owner test -w "$home"; then
    home=${TMPDIR:-/tmp}/authority-home-$owner
    as_owner mkdir -p -m 0700 "$home"
    [ "$(stat -c %u "$home")" -eq "$owner" ] || { echo "setup: $home is not ours" >&2; exit 1; }
fi
unset XDG_CACHE_HOME XDG_CONFIG_HOME XDG_STATE_HOME XDG_DATA_HOME XDG_RUNTIME_DIR
export HOME=$home
exec setpriv --reuid="$owner" --regid="$group" $groups -- "$@"
