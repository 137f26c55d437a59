"""A repository's configuration: does it hold anything but plain settings?

Pure. Git runs programs that its configuration names (a file system monitor, an editor, filters, hooks
elsewhere, transports). A run may write the configuration of a repository that it made, so its text is
read here, and only keys that are known to be harmless pass.

Rules
- Only the plain form that git itself writes is read: a section's header alone on its line, a key and
  its value on one line, comments. Everything else (continued lines, a key behind a header, control
  characters, a byte order mark) is refused: two readers must not see two things.
- A key that is not in the list is refused. The list holds what `git init`, `git clone`, `git remote`,
  `git branch`, `git config user.name` and the like write.
- A remote's URL with a transport of its own (`ext::…`, `name::…`) runs a program, so it is refused.

Source: git-config(1), gitremote-helpers(7).
"""

from __future__ import annotations

import re
from typing import Final

MAX_SIZE: Final = 64 * 1024

_HEADER = re.compile(r'\[\s*([A-Za-z0-9-]+)(?:\s+"((?:[^"\\\n]|\\["\\])*)")?\s*\]\s*([#;].*)?\Z')
_KEY = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*(?:=\s*(.*))?\Z")
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_TRANSPORT = re.compile(r'"?\s*[A-Za-z0-9+.-]*::')

_PLAIN: Final = {
    section: frozenset(keys.split())
    for section, keys in {
        "core": "repositoryformatversion filemode bare logallrefupdates ignorecase"
        " precomposeunicode symlinks autocrlf eol safecrlf compression loosecompression abbrev"
        " quotepath sharedrepository sparsecheckout sparsecheckoutcone preloadindex untrackedcache"
        " splitindex checkstat trustctime bigfilethreshold commentchar multipackindex commitgraph"
        " fsync fsyncmethod fsyncobjectfiles whitespace",
        "remote": "url pushurl fetch push tagopt mirror prune prunetags promisor partialclonefilter"
        " skipdefaultupdate skipfetchall followremotehead",
        "branch": "remote pushremote merge rebase description autosetupmerge",
        "extensions": "objectformat refstorage partialclone noop preciousobjects",
        "submodule": "url active branch fetchrecursesubmodules ignore recurse",
        "user": "name email useconfigonly",
        "author": "name email",
        "committer": "name email",
        "init": "defaultbranch",
        "commit": "status verbose cleanup",
        "pull": "rebase ff octopus twohead",
        "push": "default followtags autosetupremote",
        "fetch": "prune prunetags parallel fsckobjects writecommitgraph",
        "merge": "ff conflictstyle renames renamelimit stat",
        "rebase": "autosquash autostash stat",
        "diff": "renames renamelimit algorithm context noprefix mnemonicprefix",
        "status": "short branch showuntrackedfiles relativepaths",
        "log": "date decorate follow",
        "gc": "auto autodetach pruneexpire autopacklimit",
        "pack": "threads windowmemory deltacachesize compression",
        "index": "version threads skiphash",
        "feature": "manyfiles",
        "maintenance": "auto strategy",
    }.items()
}


def program_key(data: bytes) -> str:
    """The first thing in the configuration that a run may not write, or nothing."""
    if len(data) > MAX_SIZE:
        return "more bytes than a configuration has"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "bytes that are not UTF-8"
    if _ODD.search(text) or text.startswith("\ufeff"):
        return "control characters"
    section = sub = ""
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(" \t")
        if not line or line[0] in "#;":
            continue
        if line.endswith("\\"):
            return f"a continued line ({number})"
        if line.startswith("["):
            header = _HEADER.fullmatch(line)
            if header is None:
                return f"a section that is not plain (line {number})"
            section, sub = header[1].lower(), header[2] or ""
            continue
        key = _KEY.fullmatch(line)
        if key is None or not section:
            return f"a line that is not plain ({number})"
        if key[1].lower() not in _PLAIN.get(section, frozenset()):
            return ".".join(part for part in (section, sub, key[1]) if part)
        if key[1].lower() in ("url", "pushurl") and _TRANSPORT.match(key[2] or ""):
            return f"{section}.{sub}.{key[1]} with a transport of its own"
    return ""
