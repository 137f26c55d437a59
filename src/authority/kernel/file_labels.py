"""Labels of files: what a run wrote keeps the run's label, for whoever reads it later.

Pure; a part of the state, and so of the log. Rules
- A file's label is that of what was written: it is joined when the intent to write is recorded (a crash
  may have let it through), and is exactly that of the new content when a whole file was replaced.
- It goes with the file: renamed (with all that is below a folder), linked. It ends with it.
- Names are words, too: a folder in which a tainted run made something has a label of its own, which
  listing it brings.
- No rule of a policy lowers it. Where nothing is recorded the policy's word holds.
- A file whose size or digest is not what was last written was changed by somebody else: what is read
  carries the recorded label, and `host`.
- At most `LIMIT` names are kept apart. What comes after shares one label that every read brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from authority.kernel.labels import CLEAN, Label

LIMIT: Final = 20_000
REST: Final = "*"
HOST: Final = Label(frozenset({"host"}))
_CONTENT: Final = frozenset({"fs.write", "fs.append", "fs.modify", "fs.attributes"})
_WHOLE: Final = frozenset({"fs.write", "fs.modify"})
"""Changes whose digest, where there is one, is that of the whole file."""
_MAKES: Final = frozenset({"fs.mkdir", "fs.rename", "fs.link", "fs.symlink"})
READS: Final = frozenset({"fs.read", "fs.open", "fs.stat", "fs.list", "fs.show", "fs.look"})


class Marked(msgspec.Struct):
    """A label, and the size and digest of what was written last, where they are known."""

    label: Label
    size: int = -1
    sha256: str = ""


Files = dict[str, Marked]


def intend(files: Files, effect: str, resource: str, target: str, label: Label) -> None:
    """A change was admitted: from here on it may have happened."""
    if effect in _CONTENT and not label.clean:
        _join(files, resource, label)
    elif effect in ("fs.rename", "fs.link") and resource in files:
        _join(files, target, files[resource].label)


def intend_hidden(files: Files, effect: str, resource: str, label: Label) -> None:
    """A change was asked for whose arguments came from handles. Whether it was made may not be seen, so
    nothing is ever taken off for it, and the folder is marked as if something was made in it."""
    if effect in _CONTENT and not label.clean:
        _join(files, resource, label)
        _join(files, resource.rpartition("/")[0] + "/", label)


def done(
    files: Files,
    effect: str,
    resource: str,
    target: str,
    facts: Mapping[str, Any],
    label: Label,
) -> None:
    """A change was made."""
    if effect == "fs.write":
        files.pop(resource, None)
        if not label.clean:
            _join(files, resource, label)
    elif effect == "fs.delete":
        for name in _below(files, resource):
            del files[name]
    elif effect == "fs.rename":
        for name in _below(files, target):
            del files[name]
        for name in _below(files, resource):
            files[target + name[len(resource) :]] = files.pop(name)
    elif effect == "fs.link":
        files.pop(target, None)
        if resource in files:
            _join(files, target, files[resource].label)
    elif effect == "fs.symlink" and not label.clean:
        _join(files, resource, label)
    if not label.clean and (facts.get("created") or effect in _MAKES):
        made = target or resource
        _join(files, made.rpartition("/")[0] + "/", label)
    marked = files.get(resource)
    if marked is not None and effect in _CONTENT:
        marked.size = facts.get("size", -1)
        marked.sha256 = facts.get("sha256", "") if effect in _WHOLE else ""


def recorded(files: Files, effect: str, resource: str, facts: Mapping[str, Any]) -> Label:
    """What a read of any kind brings beside what the policy says."""
    if not files or effect not in READS:
        return CLEAN
    names = [resource, REST]
    if effect in ("fs.list", "fs.show"):
        names.append(resource + "/")
    label = CLEAN
    for name in names:
        if name in files:
            label = label.join(files[name].label)
    if effect == "fs.look":
        return Label(frozenset(), label.secrets)
    marked = files.get(resource)
    if marked is not None and _changed(marked, facts):
        label = label.join(HOST)
    return label


def _changed(marked: Marked, facts: Mapping[str, Any]) -> bool:
    size, digest = facts.get("size", -1), facts.get("sha256", "")
    if marked.size < 0 or size < 0:
        return False
    whole = facts.get("length", size) == size
    return bool(size != marked.size or (whole and digest and digest != marked.sha256 != ""))


def _join(files: Files, name: str, label: Label) -> None:
    key = name if name in files or len(files) < LIMIT else REST
    marked = files.get(key)
    files[key] = Marked(label if marked is None else marked.label.join(label))


def _below(files: Files, name: str) -> list[str]:
    return [each for each in files if each == name or each.startswith(f"{name}/")]
