"""`authority audit bundle`, and what `audit verify` and `replay` do with one."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from authority.audit.notes import VerifyKey
from authority.audit.store import ContentStore
from authority.cli.common import print_json, state_of
from authority.errors import AuthorityError
from authority.kernel.canonical import printable
from authority.rejudge.log import Rejudged, rejudge_lines
from authority.rejudge.sources import Sources
from authority.replay import bundle, bundle_reading
from authority.replay.bundle import Bundle


def make(options: argparse.Namespace, key: VerifyKey | None) -> int:
    """Write the bundle of a run."""
    state = state_of(options)
    if key is None:
        raise AuthorityError("the log's public key is not at hand", "a bundle needs its checkpoint")
    members = bundle.make(
        state.log,
        ContentStore(state.store),
        options.run,
        key,
        alone=options.alone,
        keys=state.keys / "sealed" if options.with_keys else None,
    )
    try:
        digest = bundle.write(members, options.output)
    except FileExistsError:
        raise AuthorityError(f"{printable(str(options.output))} is there already") from None
    except BaseException:
        options.output.unlink(missing_ok=True)
        raise
    found = bundle_reading.read(options.output, key)
    told = {
        "run": found.manifest.run,
        "output": str(options.output),
        "digest": digest,
        "entries": len(found.lines),
        "bodies": len(found.bodies),
        "keys": len(found.keys),
        "missing": found.manifest.missing,
    }
    if options.json:
        print_json(told)
    else:
        print(f"{told['entries']} entries, {told['bodies']} bodies, {told['keys']} keys: {digest}")
        if found.keys:
            print("  it holds keys of sealed bodies: whoever has it reads them")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check a bundle, and with `--rejudge` its verdicts."""
    key = outside_key(options.key)
    try:
        found = bundle_reading.read(options.bundle, key)
    except bundle.BundleInvalid as error:
        if options.json:
            print_json({"ok": False, "problem": error.message})
        else:
            print(f"NOT CONSISTENT: {error.message}")
        return 1
    judged = _judged(found) if options.rejudge else None
    manifest = found.manifest
    told = {
        "ok": judged is None or judged.ok,
        "problem": "",
        "run": manifest.run,
        "entries": len(found.lines),
        "covered": found.size,
        "bodies": len(found.bodies),
        "missing": manifest.missing,
        "alone": manifest.alone,
        "key": found.key.to_text(),
        "outside_key": key is not None,
        **({"rejudged": judged.to_json()} if judged else {}),
    }
    if options.json:
        print_json(told)
        return 0 if told["ok"] else 1
    print(f"the bundle of run {manifest.run} holds: {len(found.lines)} entries under a checkpoint of "
          f"{found.size}, {len(found.bodies)} bodies")  # fmt: skip
    if key is None:
        print("  its key came with it: whoever made it could have signed anything; give --key")
    if manifest.alone:
        print("  lines of other runs are left out: that none of this one is rests on who made it")
    if manifest.missing:
        print(f"  {len(manifest.missing)} bodies were gone when it was made")
    if judged is not None:
        from authority.cli.audit import say_judged

        say_judged(judged)
    return 0 if told["ok"] else 1


def outside_key(given: str | None) -> VerifyKey | None:
    """The key's text, or a file that holds it."""
    if not given:
        return None
    path = Path(given)
    return VerifyKey.from_text(path.read_text("ascii").strip() if path.is_file() else given)


def _judged(found: Bundle) -> Rejudged:
    with tempfile.TemporaryDirectory(prefix="authority-bundle-") as folder:
        store = found.unpack(Path(folder))
        return rejudge_lines(found.judged, Sources(store, sealed=bool(found.keys)))
