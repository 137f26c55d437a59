"""Bundles: what one holds, and that each way to falsify one is refused by its name."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.gate.lab import Lab, lab_at

from authority.audit import checkpoints, query, slices
from authority.audit.checkpoints import Checkpoint
from authority.audit.merkle import Tree, leaf_hash
from authority.audit.notes import SigningKey, VerifyKey
from authority.kernel import entries
from authority.kernel.canonical import digest as digest_of
from authority.kernel.canonical import encode
from authority.replay import bundle, bundle_reading
from authority.replay.bundle import BundleInvalid

from .test_replay import SECRET, WORK, replayed, script

Members = dict[str, bytes]


class Made:
    """A lab with a run, its bundle and its key."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.file("secret/key.txt", "the key of the safe")
        lab.file("data/long.txt", "x" * 5000)
        script(lab, "other.py", "print('a run that is nobody else\\'s business')")
        text = WORK + "print(gate.read('data/long.txt')[:3], gate.read('secret/key.txt')[:3])\n"
        self.run = script(lab, "work.py", text, SECRET)
        self.path = lab.root / "run.bundle"
        done = lab.cli("audit", "bundle", self.run, "--output", str(self.path))
        assert done.returncode == 0, done.stdout + done.stderr
        self.members = members(self.path)
        self.key = checkpoints.load_key(lab.directory.signing_key).public


def members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    with lab_at() as lab:
        yield Made(lab)


def written(made: Made, tmp_path: Path, change: Callable[[Members], object]) -> Path:
    """The bundle after a change of its members."""
    changed = dict(made.members)
    change(changed)
    path = tmp_path / "changed.bundle"
    bundle.write(changed.items(), path)
    return path


def refusal(made: Made, path: Path) -> str:
    """Why it is refused: by the library and by the command alike."""
    with pytest.raises(BundleInvalid) as caught:
        bundle_reading.read(path, made.key)
    done = made.lab.cli("audit", "verify", "--bundle", str(path), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    assert made.lab.cli("replay", "--bundle", str(path)).returncode == 125
    return str(caught.value)


def test_the_control_holds_judges_and_plays(made: Made) -> None:
    key = made.key.to_text()
    path = str(made.path)
    done = made.lab.cli("audit", "verify", "--bundle", path, "--key", key, "--rejudge", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["outside_key"] is True
    assert found["rejudged"]["ok"]
    assert found["rejudged"]["judged"] >= 11
    done = made.lab.cli("replay", "--bundle", path, "--json", "--quiet")
    assert done.returncode == 1, "what the secret's file said is sealed, and its key is not here"
    other = json.loads(done.stdout)["divergence"]
    assert other["what"] == "an answer that is not kept"
    assert replayed(made.lab, made.run)["verdict"] == "same"


def test_no_key_leaves_unless_asked(made: Made, tmp_path: Path) -> None:
    assert not [name for name in made.members if name.startswith("keys/")]
    path = tmp_path / "keys.bundle"
    done = made.lab.cli("audit", "bundle", made.run, "--with-keys", "--output", str(path))
    assert done.returncode == 0
    assert "holds keys" in done.stdout
    nowhere = tmp_path / "elsewhere"
    done = made.lab.cli("replay", "--bundle", str(path), "--json", "--quiet", state=nowhere)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "same"
    assert found["record"] == -1, "there is no state directory to record it in"
    assert not nowhere.exists()


def test_alone_it_holds_nothing_of_other_runs(made: Made, tmp_path: Path) -> None:
    """The control: two runs at a time, and a bundle that shows that none of its lines was kept back."""
    lab = made.lab
    waits = "import sys\nfrom authority.agent import connect\ngate = connect()\n"
    waits += "gate.read('data/a.txt')\nsys.stdin.read()\n"
    ran = lab.start([sys.executable, "-c", waits], lab.policy(SECRET)).started()
    script(lab, "other.py", "print('nobody else')")
    lab.input(ran, b"", eof=True)
    ran.end()
    for options, shown in (((), True), (("--alone",), False)):
        path = tmp_path / f"{shown}.bundle"
        assert lab.cli("audit", "bundle", ran.run, *options, "--output", str(path)).returncode == 0
        assert (b"nobody else" in path.read_bytes()) is shown
        done = lab.cli("audit", "verify", "--bundle", str(path), "--rejudge", "--json")
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout)["alone"] is not shown


def line_of(made: Made, wanted: bytes) -> tuple[int, int]:
    """Place in `log/lines`, and the number of the entry that stands there."""
    data = made.members["log/lines"]
    at = data.index(wanted)
    line = data[data.rfind(b"\n", 0, at) + 1 : data.index(b"\n", at)]
    return at, json.loads(line)["seq"]


def test_a_changed_byte_names_its_entry(made: Made, tmp_path: Path) -> None:
    at, seq = line_of(made, b"made.txt")

    def change(found: Members) -> None:
        data = bytearray(found["log/lines"])
        data[at] ^= 1
        found["log/lines"] = bytes(data)

    assert f"entry {seq} is damaged" in refusal(made, written(made, tmp_path, change))


def test_every_byte_of_the_log_counts(made: Made, tmp_path: Path) -> None:
    size = len(made.members["log/lines"])
    for at in range(0, size, size // 37):
        changed = bytearray(made.members["log/lines"])
        changed[at] ^= 1
        path = tmp_path / f"{at}.bundle"
        bundle.write({**made.members, "log/lines": bytes(changed)}.items(), path)
        with pytest.raises(BundleInvalid):
            bundle_reading.read(path, made.key)


def test_a_line_that_was_taken_out(made: Made, tmp_path: Path) -> None:
    def change(found: Members) -> None:
        rows = found["log/lines"].split(b"\n")
        del rows[-3]
        found["log/lines"] = b"\n".join(rows)

    assert "not as many entries" in refusal(made, written(made, tmp_path, change))


def hidden(made: Made, gone: int) -> Callable[[Members], None]:
    """Whoever has the log leaves one entry out, and proves the others well."""

    def change(found: Members) -> None:
        stored = list(query.lines(made.lab.directory.log))
        numbers = [
            n
            for part in json.loads(found["log/proof.json"])["stretches"]
            for n in range(part["first"], part["last"] + 1)
            if n != gone
        ]
        before = [
            bytes.fromhex(stored[n - 1][-66:-2].decode()) if n else bytes(32) for n in numbers
        ]
        parts = slices.stretches(numbers, before)
        size = Checkpoint.parse(found["log/checkpoint"].decode(), made.key).size
        tree = Tree([leaf_hash(line) for line in stored[:size]])
        hashes = [node.hex() for node in slices.prove(tree, size, parts)]
        found["log/lines"] = b"".join(stored[n] + b"\n" for n in numbers)
        found["log/proof.json"] = encode({"hashes": hashes, "stretches": parts})

    return change


def test_an_entry_that_is_kept_back_is_named_although_the_rest_is_proved(
    made: Made, tmp_path: Path
) -> None:
    _, seq = line_of(made, b"made.txt")
    control = written(made, tmp_path, hidden(made, -1))
    assert bundle_reading.read(control, made.key).manifest.run == made.run
    control.unlink()
    assert f"entry {seq} of the run's time is missing" in refusal(
        made, written(made, tmp_path, hidden(made, seq))
    )


def test_an_end_that_is_kept_back(made: Made, tmp_path: Path) -> None:
    def change(found: Members) -> None:
        told = json.loads(found["bundle.json"])
        told["last"] -= 1
        found["bundle.json"] = encode(told)

    assert "is not the last of the run" in refusal(made, written(made, tmp_path, change))


def test_another_run_than_the_manifest_says(made: Made, tmp_path: Path) -> None:
    def change(found: Members) -> None:
        told = json.loads(found["bundle.json"])
        told["run"] = "0123456789ab"
        found["bundle.json"] = encode(told)

    assert "is not the first of the run" in refusal(made, written(made, tmp_path, change))


def test_a_foreign_checkpoint(made: Made, tmp_path: Path) -> None:
    original = made.members["log/checkpoint"].decode()
    checkpoint = Checkpoint.parse(original, made.key)
    stranger = SigningKey(made.key.name, b"\7" * 32)
    signed = checkpoint.text + "\n" + stranger.sign(checkpoint.text)
    path = written(made, tmp_path, lambda m: m.update({"log/checkpoint": signed.encode()}))
    assert "not signed by the log's key" in refusal(made, path)
    path.unlink()

    def own(found: Members) -> None:
        told = json.loads(found["bundle.json"])
        told["key"] = stranger.public.to_text()
        found["bundle.json"], found["log/checkpoint"] = encode(told), signed.encode()

    path = written(made, tmp_path, own)
    assert bundle_reading.read(path).key.to_text() == stranger.public.to_text(), (
        "believed without a key"
    )
    assert "another log than the key" in _refused(path, made.key)


def _refused(path: Path, key: VerifyKey) -> str:
    with pytest.raises(BundleInvalid) as caught:
        bundle_reading.read(path, key)
    return str(caught.value)


def test_another_checkpoint_of_the_same_log(made: Made, tmp_path: Path) -> None:
    notes = checkpoints.load(made.lab.directory.log)
    mine = Checkpoint.parse(made.members["log/checkpoint"].decode(), made.key)
    sizes = {Checkpoint.parse(note, made.key).size: note for note in notes}
    smaller = max(size for size in sizes if size < mine.size)
    path = written(made, tmp_path, lambda m: m.update({"log/checkpoint": sizes[smaller].encode()}))
    assert "beyond the checkpoint" in refusal(made, path)


def policy_of(made: Made) -> str:
    told = map(entries.decode, made.members["log/lines"].splitlines())
    return next(e.policy for e in told if isinstance(e, entries.RunStart) and e.run == made.run)


def test_a_policy_that_is_not_its_digest(made: Made, tmp_path: Path) -> None:
    name = policy_of(made)

    def wider(found: Members) -> None:
        found[f"store/{name}"] = found[f"store/{name}"].replace(b"./out/", b"./any/")

    changed = made.members[f"store/{name}"].replace(b"/out/", b"/any/")
    assert changed != made.members[f"store/{name}"]
    path = written(made, tmp_path, lambda m: m.update({f"store/{name}": changed}))
    assert f"the policy {name} is not what its digest says" in refusal(made, path)
    path.unlink()
    path = written(made, tmp_path, lambda m: m.pop(f"store/{name}"))
    assert f"the body {name} is missing" in refusal(made, path)


def test_bodies_that_were_changed_added_or_taken_out(made: Made, tmp_path: Path) -> None:
    name = next(n for n, data in made.members.items() if n.startswith("store/") and b"eHh4" in data)
    path = written(made, tmp_path, lambda m: m.update({name: m[name] + b" "}))
    assert f"the body {name[6:]} is not what its digest says" in refusal(made, path)
    path.unlink()
    path = written(made, tmp_path, lambda m: m.pop(name))
    assert f"the body {name[6:]} is missing" in refusal(made, path)
    path.unlink()
    extra = digest_of(b"planted")
    path = written(made, tmp_path, lambda m: m.update({f"store/{extra}": b"planted"}))
    assert f"no entry names the body {extra}" in refusal(made, path)
    path.unlink()
    path = written(made, tmp_path, lambda m: m.update({f"keys/{extra}": b"k" * 32}))
    assert f"no entry names the key {extra}" in refusal(made, path)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


TRICKS: dict[str, tuple[tarfile.TarInfo, str]] = {
    "above": (member("../out"), "does not belong"),
    "within": (member("store/../../out"), "does not belong"),
    "absolute": (member("/etc/passwd"), "does not belong"),
    "link": (member("store/" + "a" * 64, tarfile.SYMTYPE, "/etc/passwd"), "no plain file"),
    "hard link": (member("store/" + "a" * 64, tarfile.LNKTYPE, "/etc/passwd"), "no plain file"),
    "device": (member("store/" + "a" * 64, tarfile.CHRTYPE), "no plain file"),
    "pipe": (member("store/" + "a" * 64, tarfile.FIFOTYPE), "no plain file"),
    "folder": (member("store", tarfile.DIRTYPE), "no plain file"),
    "twice": (member("bundle.json"), "twice"),
    "line end": (member("store/" + "a" * 64 + "\n"), "does not belong"),
    "upper case": (member("store/" + "A" * 64), "does not belong"),
}


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_with_names_are_refused(made: Made, tmp_path: Path, name: str) -> None:
    planted, why = TRICKS[name]
    path = tmp_path / "tricky.bundle"
    path.write_bytes(made.path.read_bytes())
    before = sorted(p.name for p in tmp_path.iterdir())
    with tarfile.open(path, "a") as tar:
        tar.addfile(planted, io.BytesIO(b""))
    assert why in refusal(made, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_what_is_no_tar_or_cut_off(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "odd.bundle"
    data = made.path.read_bytes()
    for odd in (b"", b"no tar at all" * 100, data[: len(data) // 2], data[:700]):
        path.write_bytes(odd)
        assert refusal(made, path)
    import gzip

    path.write_bytes(gzip.compress(data))
    assert "can't be read as tar" in refusal(made, path)


@pytest.mark.parametrize("name", ["bundle.json", "log/lines", "log/proof.json", "log/checkpoint"])
def test_parts_that_are_gone_or_malformed(made: Made, tmp_path: Path, name: str) -> None:
    path = written(made, tmp_path, lambda m: m.pop(name))
    assert f"has no {name}" in refusal(made, path)
    path.unlink()
    path = written(made, tmp_path, lambda m: m.update({name: b'{"a": 1}'}))
    assert refusal(made, path)


def test_a_bundle_of_a_policy_that_judged_otherwise(made: Made) -> None:
    """A verdict that is not what the kernel says is named by `--rejudge`: the control is above."""
    from authority.audit.store import ContentStore
    from authority.rejudge.log import rejudge_lines
    from authority.rejudge.sources import Sources

    found = bundle_reading.read(made.path, made.key)
    at, seq = line_of(made, b'"E_POLICY_DENY"')
    assert at
    lines = [
        line.replace(b'"E_POLICY_DENY"', b'"E_TAINT"') if b'"E_POLICY_DENY"' in line else line
        for line in found.lines
    ]
    store = ContentStore(made.lab.directory.store)
    judged = rejudge_lines(lines, Sources(store))
    assert not judged.ok
    assert judged.differences[0].seq == seq
    assert rejudge_lines(found.lines, Sources(store)).ok
