"""Labels of files: what a run wrote keeps the run's label, for whoever reads it later.

Pure; a part of the state, and so of the log. Rules
- A file's label is that of what was written: it is joined when the intent to write is recorded (a crash
  may have let it through), and is exactly that of the new content when a whole file was replaced.
- It goes with the file: renamed (with all that is below a folder), exchanged, linked. It ends with it.
- Of changes under way at one time nobody knows the order: nothing is taken off (`file_overlap`).
- A file with several names has one label. What was written under one name is found under each, also
  one that somebody else gave it: it is kept by device and inode as well (`_inode`), and that counts
  for a file that has several names, or is as long as it was when it was written.
- Names and sizes are words, too: a folder in which a tainted run made, changed or removed something
  has a label of its own, which listing it brings, and so does asking there for what can't be had.
- Which file stands at a name is a word: a name that a tainted run made, or moved something to, has its
  label, whatever the file holds, and of a folder that it moved all names below (`_tree`).
- Changing says what was there: whether a name could be made, moved or removed, and how long a file is
  that was added to. So it brings labels as a look does. Only `fs.write`, where it replaces what there
  may be and does not fail, says nothing.
- Size, times and mode of a file are its writer's words, so looking at it is reading it. When a folder
  was changed is a word of whoever changed something in it, so `fs.stat` of it is like listing it.
- No rule of a policy lowers it. Where nothing is recorded the policy's word holds.
- A file that is not as it was last written was changed by somebody else: what is read carries the
  recorded label, and `host`. Its digest decides where all of it was read; else its size, and the moment
  when it was changed last (`changed`, which nobody can set).
- At most `LIMIT` names are kept apart. What comes after shares one label that every read brings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from authority.kernel.labels import CLEAN, Label

LIMIT: Final = 40_000
REST: Final = "*"
HOST: Final = Label(frozenset({"host"}))
_CONTENT: Final = frozenset({"fs.write", "fs.append", "fs.modify", "fs.attributes"})
_WHOLE: Final = frozenset({"fs.write", "fs.modify"})
"""Changes whose digest, where there is one, is that of the whole file."""
_NAMES: Final = frozenset({"fs.mkdir", "fs.rename", "fs.link", "fs.symlink", "fs.delete"})
READS: Final = frozenset({"fs.read", "fs.open", "fs.stat", "fs.list", "fs.show", "fs.look"})
CHANGES: Final = _CONTENT | _NAMES


class Marked(msgspec.Struct):
    """A label; of what was written last size, digest, moment and inode, where they are known."""

    label: Label
    size: int = -1
    sha256: str = ""
    changed: int = -1
    inode: str = ""


Files = dict[str, Marked]


def intend(
    files: Files,
    effect: str,
    resource: str,
    target: str,
    label: Label,
    facts: Mapping[str, Any] = {},
) -> None:
    """A change was admitted: from here on it may have happened. `facts`: what was looked up for it."""
    if effect in _CONTENT and not label.clean:
        _join(files, resource, label)
        marked = files.get(resource, files.get(REST, _NONE))
        marked.inode = _inode(facts) or marked.inode
        if marked.inode:
            _join(files, marked.inode, label)
        if effect != "fs.attributes":
            marked.size, marked.sha256 = -1, ""
        marked.changed = -1
    elif effect in ("fs.rename", "fs.link"):
        for name in _below(files, resource):
            _join(files, target + name[len(resource) :], files[name].label)
    if not label.clean and effect in CHANGES:
        for end in (resource, target):
            if end:
                _join(files, _folder(end), label)
        if effect in _NAMES and effect != "fs.delete":
            _join(files, target or resource, label)


def in_doubt(files: Files, effect: str, resource: str, target: str, label: Label) -> None:
    """Nobody knows what came of a change. All that it may have changed was joined when it was admitted,
    but for the folders above that it may have made."""
    if effect == "fs.mkdir" and not label.clean:
        above = resource.rpartition("/")[0]
        while "/" in above:
            _join(files, _folder(above), label)
            _join(files, above, label)
            above = above.rpartition("/")[0]
    elif effect == "fs.rename":  # perhaps of a folder, and perhaps an exchange
        for name in _below(files, target):
            _join(files, resource + name[len(target) :], files[name].label)
        _placed(files, (resource, target), label, whole=True)


def intend_hidden(files: Files, effect: str, resource: str, label: Label) -> None:
    """A change was asked for whose arguments came from handles. Whether it was made may not be seen, so
    it is marked as if it was, and nothing is ever taken off for it."""
    intend(files, effect, resource, "", label)


def done(
    files: Files,
    effect: str,
    resource: str,
    target: str,
    facts: Mapping[str, Any],
    label: Label,
    *,
    alone: bool = True,
) -> None:
    """A change was made; if others were under way it was not `alone` (`file_overlap`)."""
    if effect == "fs.write":
        if alone:
            _drop(files, resource, facts)
        if not label.clean:
            _join(files, resource, label)
    elif effect == "fs.delete":
        for name in _below(files, resource) if alone else ():
            _drop(files, name, facts)
    elif effect == "fs.rename":
        (_moved if alone else _spread)(files, resource, target, facts)
        ends = (resource, target) if facts.get("exchanged") else (target,)
        _placed(files, ends, label, whole=_folders(facts))
    elif effect == "fs.link":
        if alone:
            files.pop(target, None)
        if resource in files:
            _join(files, target, files[resource].label)
        _placed(files, (target,), label)
    elif effect == "fs.symlink":
        _placed(files, (resource,), label)
    elif effect == "fs.mkdir" and not label.clean:
        above = resource
        for _ in range(min(facts.get("made", 1), 256)):
            _join(files, _folder(above), label)
            _join(files, above, label)
            above = above.rpartition("/")[0]
    for name in (resource, target) if effect == "fs.link" else (target or resource,):
        _known(files, effect, name, facts)


def recorded(files: Files, effect: str, resource: str, facts: Mapping[str, Any]) -> Label:
    """What a read of any kind brings beside what the policy says, and what a change tells."""
    if not files:
        return CLEAN
    if effect not in READS:
        return _told(files, effect, resource, facts)
    names = [resource, REST, *_trees(resource)]
    folder = effect == "fs.stat" and facts.get("type") == "directory"
    if folder or effect in ("fs.list", "fs.show"):
        names.append(resource.rstrip("/") + "/")
    if facts.get("failed"):
        names.append(_folder(resource))
    marked = files.get(resource)
    inode = files.get(_inode(facts))
    if inode is not None and (facts.get("links", 1) > 1 or facts.get("size", -2) == inode.size):
        marked = inode if marked is None else marked
        names.append(_inode(facts))
    label = CLEAN
    for name in names:
        if name in files:
            label = label.join(files[name].label)
    return label.join(HOST) if marked is not None and _changed(marked, facts) else label


def _told(files: Files, effect: str, resource: str, facts: Mapping[str, Any]) -> Label:
    """What is seen of a change: of one that `failed` at its `target`, too."""
    if effect not in CHANGES or (effect == "fs.write" and facts.get("replaces")):
        return CLEAN
    names = [resource, REST, *_trees(resource)]
    if facts.get("failed"):
        for end in filter(None, (resource, facts.get("target", ""))):
            names += [end, f"{end}/", _folder(end), *_trees(end)]
    label = CLEAN
    for name in names:
        if name in files:
            label = label.join(files[name].label)
    return label


def _changed(marked: Marked, facts: Mapping[str, Any]) -> bool:
    size, digest = facts.get("size", -1), facts.get("sha256", "")
    if marked.size >= 0 and size >= 0:
        if size != marked.size:
            return True
        if digest and marked.sha256 and facts.get("length", size) == size:
            return bool(digest != marked.sha256)
    changed = facts.get("changed", -1)
    return bool(marked.changed >= 0 and changed >= 0 and changed != marked.changed)


def _known(files: Files, effect: str, name: str, facts: Mapping[str, Any]) -> None:
    """Remember what a file was like when a run had changed it."""
    marked = files.get(name)
    if marked is None:
        return
    if effect in _CONTENT and effect != "fs.attributes":
        marked.size = facts.get("size", -1)
        marked.sha256 = facts.get("sha256", "") if effect in _WHOLE else ""
    if effect in _CONTENT or effect in _NAMES:
        marked.changed = facts.get("changed", -1)
    inode = _inode(facts)
    if inode and facts.get("type") != "directory" and (effect in _CONTENT or effect == "fs.link"):
        _join(files, inode, marked.label)
        marked.inode = inode if inode in files else ""
    if (one := files.get(marked.inode)) is not None:
        one.size, one.sha256, one.changed = marked.size, marked.sha256, marked.changed


def _moved(files: Files, resource: str, target: str, facts: Mapping[str, Any]) -> None:
    """Names below one take the place of those below the other."""
    here = {name: files.pop(name) for name in _below(files, resource)}
    there = {name: files.pop(name) for name in _below(files, target)}
    for name, marked in here.items():
        files[target + name[len(resource) :]] = marked
    for name, marked in there.items():
        if facts.get("exchanged"):
            files[resource + name[len(target) :]] = marked
            marked.changed = -1
        elif facts.get("replaced_links", 1) <= 1:
            files.pop(marked.inode, None)


def _spread(files: Files, resource: str, target: str, facts: Mapping[str, Any]) -> None:
    """Names below one may have taken the place of those below the other."""
    for name in _below(files, resource):
        _join(files, target + name[len(resource) :], files[name].label)
    for name in _below(files, target) if facts.get("exchanged") else ():
        _join(files, resource + name[len(target) :], files[name].label)


def _placed(files: Files, names: Iterable[str], label: Label, *, whole: bool = False) -> None:
    """These names lead where a run's words want it; with `whole` also what is below them."""
    for name in names if not label.clean else ():
        _join(files, name, label)
        if whole:
            _join(files, _tree(name), label)


def _folders(facts: Mapping[str, Any]) -> bool:
    """Whether a folder was moved, or may have been."""
    return facts.get("type") == "directory" or bool(facts.get("exchanged"))


def _drop(files: Files, name: str, facts: Mapping[str, Any]) -> None:
    """A name is gone, and with its last name the file."""
    marked = files.pop(name, None)
    if marked is not None and facts.get("links", 1) <= 1:
        files.pop(marked.inode, None)


def _join(files: Files, name: str, label: Label) -> None:
    key = name if name in files or len(files) < LIMIT else REST
    marked = files.get(key)
    if marked is None:
        files[key] = Marked(label)
    else:
        marked.label = marked.label.join(label)


def _below(files: Files, name: str) -> list[str]:
    return [each for each in files if each == name or each.startswith(f"{name}/")]


def _folder(name: str) -> str:
    """The key of the folder that holds a name."""
    return name.rpartition("/")[0] + "/"


def _tree(name: str) -> str:
    """The key of all that is below a folder."""
    return f"{name}//"


def _trees(name: str) -> Iterator[str]:
    """The keys of all folders above a name."""
    while name := name.rpartition("/")[0]:
        yield _tree(name)


def _inode(facts: Mapping[str, Any]) -> str:
    """The key of a file, whatever it is called."""
    if not facts.get("ino"):
        return ""
    return f"inode:{facts.get('dev', 0)}:{facts['ino']}"


_NONE: Final = Marked(CLEAN)
