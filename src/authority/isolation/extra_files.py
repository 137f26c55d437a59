"""Small files that the gate gives a run: written by the launcher, or laid over what is shown.

Rules
- A file lies at a plain absolute path, read-only. Where the runtime shows something else at that path
  it is covered, and only a plain file can be; nothing is written through a link.
- Certificates lie over every bundle of trusted certificates that the runtime brings along, because not
  every program asks a variable where they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from authority.isolation import layout, runtime
from authority.isolation.refusal import IsolationRefused, shown
from authority.isolation.view import View


def lay(
    given: Mapping[str, bytes], certificates: bytes, view: View
) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """Files that the launcher writes, by path, and those of them that it puts over others."""
    written = dict(layout.etc_files())
    written.update(view.copies)
    covers = []
    bundles = runtime.certificate_bundles(view) if certificates else []
    files = {**dict.fromkeys(bundles, certificates), **given}
    for number, (path, content) in enumerate(sorted(files.items())):
        if not os.path.isabs(path) or os.path.normpath(path) != path or path.endswith("/"):
            raise IsolationRefused(f"{shown(path)} is no plain absolute path of a file")
        view.files.pop(path, None)
        view.links.pop(path, None)
        if view.covered(path):
            if os.path.realpath(path) != path or not os.path.isfile(path):
                raise IsolationRefused(f"{shown(path)} is no file that could be covered")
            source = f"{layout.COVERS}/{number}"
            written[source] = content
            covers.append((source, path))
        else:
            written[path] = content
    return written, covers
