"""House rules that a reader can't be asked to check: sources, locks, and documents that stay true.

- `src` holds no unfinished marks, no broad handler that swallows what it caught, no module so long
  that it must have two ideas.
- No pattern in `src` ends a text with `$`, which lets a line end through (`\\Z` does not), and one for
  a message's field is anchored at both ends.
- Locks give versions and hashes, and never say where a file is fetched from.
- No file of the project names a folder of the machine on which it was written, or a registry.
- Relative links in documents lead somewhere, their headings included.
- Every row of the threat model's tables names a test, or says that no test shows it.
- The tables of the log's entries, of the control API's calls and of the effects are the code's, and so
  is the list of rooms.
- A fenced block that opens with ```python test is run, alone, in an empty folder; so is every
  ```toml policy block, which must load as a policy.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
MAX_LINES = 450

UNFINISHED = re.compile(
    r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b"
)
"""Written in halves, so that this file is not its own first finding."""

EXPRESSIONS = frozenset(
    f"re.{name}"
    for name in (
        "compile",
        "match",
        "fullmatch",
        "search",
        "sub",
        "subn",
        "split",
        "findall",
        "finditer",
    )
)

SKIPPED_FOLDERS = frozenset(
    [
        ".git",
        ".venv",
        ".venv-agentdojo",
        "build",
        "dist",
        "__pycache__",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".hypothesis",
    ]
)


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def project_files() -> Iterator[Path]:
    for folder, below, files in os.walk(ROOT):
        below[:] = [d for d in below if d not in SKIPPED_FOLDERS and not d.endswith(".egg-info")]
        yield from (Path(folder, name) for name in files if name not in SKIPPED_FOLDERS)


# --- sources ---


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_a_module_is_finished_and_has_one_idea(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    marks = [f"{n}: {line.strip()}" for n, line in enumerate(lines, 1) if UNFINISHED.search(line)]
    assert not marks
    assert len(lines) <= MAX_LINES, f"{len(lines)} lines"


def swallowed(source: str) -> list[int]:
    """Lines of broad handlers that neither raise nor look at what they caught."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type):
            inside = [inner for statement in node.body for inner in ast.walk(statement)]
            raises = any(isinstance(inner, ast.Raise) for inner in inside)
            looks = any(isinstance(inner, ast.Name) and inner.id == node.name for inner in inside)
            if not raises and not looks:
                found.append(node.lineno)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"suppress", "contextlib.suppress"}
            and any(is_broad(argument) for argument in node.args)
        ):
            found.append(node.lineno)
    return found


def is_broad(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(is_broad(one) for one in caught.elts)
    return caught is None or ast.unparse(caught).split(".")[-1] in {"Exception", "BaseException"}


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_no_error_is_swallowed(path: Path) -> None:
    assert swallowed(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("try: f()\nexcept Exception: pass", True),
        ("try: f()\nexcept: x = 1", True),
        ("try: f()\nexcept (OSError, BaseException): pass", True),
        ("with contextlib.suppress(Exception): f()", True),
        ("try: f()\nexcept Exception as e: log('failed')", True),
        ("try: f()\nexcept OSError: pass", False),
        ("try: f()\nexcept Exception as e: poison(e)", False),
        ("try: f()\nexcept BaseException:\n    close()\n    raise", False),
        ("with contextlib.suppress(FileNotFoundError): f()", False),
    ],
)
def test_a_swallowed_error_is_seen(source: str, caught: bool) -> None:
    assert bool(swallowed(source)) is caught


def patterns(source: str) -> Iterator[tuple[int, str | bytes, bool]]:
    """Each pattern that is written out: its line, its text, and whether a field's form (msgspec)."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in EXPRESSIONS and node.args:
            yield node.lineno, written(node.args[0]), False
        for keyword in node.keywords:
            if keyword.arg == "pattern" and called.split(".")[-1] == "Meta":
                yield node.lineno, written(keyword.value), True


def written(node: ast.expr) -> str | bytes:
    """What stands in the source; whatever is filled in counts as one letter."""
    match node:
        case ast.Constant(value=str(text)) | ast.Constant(value=bytes(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(v.value if isinstance(v, ast.Constant) else "x" for v in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [written(left), written(right)]
            if any(isinstance(part, bytes) for part in parts):
                return b"".join(p if isinstance(p, bytes) else p.encode() for p in parts)
            return "".join(str(part) for part in parts)
    return "x"


def ends_loosely(pattern: str | bytes) -> bool:
    """Whether `$` stands in it as an anchor, as the compiler of patterns sees it."""
    return "(AT, AT_END)" in str(re._parser.parse(pattern))


def loose(source: str) -> list[int]:
    """Lines of patterns that let a line end through, or a field's form that is open at an end."""
    return [
        line
        for line, text, field in patterns(source)
        if ends_loosely(text)
        or (field and not (str(text).startswith("\\A") and str(text).endswith("\\Z")))
    ]


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_no_pattern_lets_a_line_end_through(path: Path) -> None:
    assert loose(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ('re.compile(r"[a-z]+$")', True),
        ('re.compile("(?:a$|b)c?")', True),
        ('re.compile(rb"[a-z]+$")', True),
        ('re.compile("a" "b$")', True),
        ('re.compile(f"{name}$")', True),
        ('re.compile(NAME + "$")', True),
        ('re.match(r"^[a-z]+$", text)', True),
        ('msgspec.Meta(pattern="^[0-9a-f]{64}$")', True),
        ('msgspec.Meta(pattern=r"[0-9a-f]{64}")', True),
        ('msgspec.Meta(pattern=r"[0-9a-f]{64}\\Z")', True),
        ('msgspec.Meta(pattern=r"\\A[0-9a-f]{64}\\Z")', False),
        ('re.compile(r"[a-z]+\\Z")', False),
        ('re.compile(r"[a-z$]+\\$\\Z")', False),
        ('re.compile(rb"a$".replace(b"$", b""))', False),
        ('text.endswith("$")', False),
    ],
)
def test_a_pattern_that_ends_loosely_is_seen(source: str, caught: bool) -> None:
    assert bool(loose(source)) is caught


def test_what_the_rule_is_about() -> None:
    assert re.match("[a-z]+$", "abc\n")
    assert not re.match(r"[a-z]+\Z", "abc\n")


# --- locks and machine paths ---

REQUIREMENT = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][^\s;]*( ; [^\\]+)?( \\)?")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def lock_problems(text: str) -> list[str]:
    """Lines of a lock that are neither a pinned version, a hash nor a comment without address."""
    found, needs_hash = [], ""
    for line in text.splitlines():
        comment = line.startswith("#") and "://" not in line
        if HASH.fullmatch(line):
            needs_hash = ""
        elif REQUIREMENT.fullmatch(line):
            if needs_hash:
                found.append(needs_hash)
            needs_hash = line
        elif line and not comment:
            found.append(line)
    return [*found, needs_hash] if needs_hash else found


@pytest.mark.parametrize("path", LOCKS, ids=names(LOCKS))
def test_a_lock_holds_versions_and_hashes_alone(path: Path) -> None:
    assert lock_problems(path.read_text("utf-8")) == []


def test_there_are_locks() -> None:
    assert {path.stem for path in LOCKS} >= {"runtime", "dev", "bench"}


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://mirror.example/simple",
        "--find-links /opt/somewhere",
        "thing @ file:///somewhere/thing.whl",
        "thing>=1.0",
        "thing==1.0",
        "# found at https://mirror.example/simple",
    ],
)
def test_a_bad_lock_is_seen(line: str) -> None:
    assert lock_problems(line + "\n")


def forbidden_words() -> list[bytes]:
    """This folder, the writers' machines, and registries: put together here, not quoted."""
    words = [str(ROOT), *("/".join(("", "opt", name)) for name in ("pypi", "wheels"))]
    words += ["/".join(("", "work", name)) for name in ("main", "shared")]
    words += [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"))]
    words += [".".join(("registry", "npmjs", "org")), ".".join(("proxy", "golang", "org"))]
    words += [".py" + "env/"]
    return [word.encode() for word in words if len(word) > 5]


def test_no_file_names_this_machine_or_a_registry() -> None:
    words = forbidden_words()
    found = [
        f"{path.relative_to(ROOT)}: {word.decode()}"
        for path in project_files()
        if path.is_file()
        for data in [path.read_bytes()]
        for word in words
        if word in data
    ]
    assert not found, "\n".join(found)


# --- documents ---

FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def blocks(kind: str) -> list[tuple[str, str]]:
    """(document:line, text) of each fenced block whose info string is `kind`."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        for match in FENCE.finditer(text):
            if match[1].strip() == kind:
                line = text.count("\n", 0, match.start()) + 1
                found.append((f"{path.relative_to(ROOT)}:{line}", match[2]))
    return found


def anchors(text: str) -> set[str]:
    """The anchors that a document's headings get, as the common forges make them."""
    text = FENCE.sub("", text)
    plain = (
        re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", match[1]) for match in HEADING.finditer(text)
    )
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in plain}


def broken_links(path: Path, root: Path = ROOT) -> list[str]:
    text = FENCE.sub("", path.read_text("utf-8"))
    text = re.sub(r"`[^`\n]*`", "", text)
    found = []
    for match in LINK.finditer(text):
        target, _, anchor = match[1].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (path.parent / unquote(target)) if target else path
        missing = not file.exists() or not file.resolve().is_relative_to(root)
        if missing or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            found.append(match[1])
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](missing.md) [b](#no-such-heading) [c](#here-it-is)\n\n# Here it is\n")
    assert broken_links(page, tmp_path) == ["missing.md", "#no-such-heading"]


@pytest.mark.parametrize(
    "code", [pytest.param(code, id=where) for where, code in blocks("python test")]
)
def test_examples_in_documents_run(code: str, tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, str(file)], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    "text", [pytest.param(text, id=where) for where, text in blocks("toml policy")]
)
def test_policies_in_documents_load(text: str) -> None:
    from authority.gate.policyfile import shipped_prices
    from authority.kernel.policy import Source, load
    from authority.kernel.policy_tree import SHIPPED_PRICES

    def parent(_base: str, name: str) -> Source:
        assert name == SHIPPED_PRICES, f"an example extends {name}"
        return shipped_prices()

    load(text, format="toml", base="/project", name="example.toml", read_parent=parent)


SECURITY_CLAIM = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_test_that_a_document_names_exists(path: Path) -> None:
    """A claim rests on a test: the file must be there, and the function in it."""
    missing = []
    for file, function in SECURITY_CLAIM.findall(path.read_text("utf-8")):
        source = ROOT / file
        text = source.read_text("utf-8") if source.is_file() else ""
        if not text or (function and not re.search(rf"^\s*(async )?def {function}\(", text, re.M)):
            missing.append(f"{file}::{function}" if function else file)
    assert not missing


CLAIM = re.compile(r"^\| (?P<claim>.+) \| (?P<shown>.+) \|$", re.MULTILINE)
HEADINGS = re.compile(
    r"\| claim \| shown by \|\n\|---\|---\|\n|\| attack \| what holds \| test \|\n\|---\|---\|---\|\n"
)
NOT_SHOWN = "not shown by a test"


def claims(text: str) -> list[tuple[str, str]]:
    """(claim, what shows it) of each row of the tables that begin with `claim | shown by`, or with
    `attack | what holds | test`."""
    found = []
    for part in re.split(HEADINGS, text)[1:]:
        rows = part.split("\n\n", 1)[0]
        found += [(match["claim"], match["shown"]) for match in CLAIM.finditer(rows)]
    return found


def unfounded(found: list[tuple[str, str]]) -> list[str]:
    """Claims that name no test function and don't say that none shows them."""
    return [
        claim
        for claim, shown in found
        if NOT_SHOWN not in shown and not any(f for _, f in SECURITY_CLAIM.findall(shown))
    ]


def test_every_security_claim_names_a_test_or_says_that_none_shows_it() -> None:
    found = claims((ROOT / "docs" / "threat-model.md").read_text("utf-8"))
    assert len(found) > 40
    assert unfounded(found) == []


@pytest.mark.parametrize("shown", ["`tests/kernel/`", "the design", "`tests/test_house.py`"])
def test_an_unfounded_claim_is_seen(shown: str) -> None:
    text = f"| claim | shown by |\n|---|---|\n| all is well | {shown} |\n\n"
    assert unfounded(claims(text)) == ["all is well"]


def section(document: str, heading: str) -> str:
    """The text below a heading of the second level, up to the next."""
    text = (ROOT / "docs" / document).read_text("utf-8")
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> dict[str, str]:
    """First cell (without marks) and last cell of each row of a table."""
    found = {}
    for match in re.finditer(r"^\| `([^`]+)` \|.*\| (.*) \|$", text, re.MULTILINE):
        found[match[1]] = match[2]
    return found


def test_the_log_formats_entries_are_the_codes() -> None:
    from typing import get_args

    import msgspec

    from authority.kernel import entries

    common = {"seq", "batch", "time", "run"}
    expected = {}
    for kind in get_args(entries.AnyEntry):
        fields = [f for f in msgspec.structs.fields(kind) if f.name not in common]
        needed = {f.name for f in fields if f.required}
        expected[kind.__struct_config__.tag] = (needed, {f.name for f in fields} - needed)
    found = {}
    for kind, cell in rows(section("log-format.md", "Entries")).items():
        members = re.sub(r"\([^)]*\)", "", cell)
        needed = set(re.findall(r"\*`(\w+)`\*", members))
        found[kind] = (needed, set(re.findall(r"`(\w+)`", members)) - needed)
    assert found == expected


def test_the_architectures_rooms_are_the_codes() -> None:
    listed = section("architecture.md", "Rooms").split("```")[1]
    named = set(re.findall(r"^  (\w+)/ ", listed, re.MULTILINE))
    assert named == {path.parent.name for path in (ROOT / "src/authority").glob("*/__init__.py")}


def test_the_control_apis_calls_are_the_codes() -> None:
    source = "".join(
        (ROOT / f"src/authority/gate/{name}.py").read_text("utf-8")
        for name in ("dry", "routes", "run_routes", "incident_routes")
    )
    calls = re.findall(r'control\.route\(\s*"(\w+)", "([^"]+)", "(\w+)"', source)
    documented = re.findall(
        r"^\| `(\w+) ([^`]+)` \| `(\w+)` \|", section("control-api.md", "Calls"), re.MULTILINE
    )
    assert sorted((m, p.replace("*", "ID"), a) for m, p, a in calls) == sorted(documented)


def test_the_protocols_effects_are_the_codes() -> None:
    from authority.kernel.requests import EFFECTS

    text = section("protocol.md", "Effects")
    assert set(rows(text)) == set(EFFECTS)
    for name, spec in EFFECTS.items():
        (line,) = re.findall(rf"^\| `{re.escape(name)}` \|.*$", text, re.MULTILINE)
        arguments = line.split(" | ")[2] if line.count(" | ") > 2 else ""
        assert set(re.findall(r"`(\w+)`", arguments)) == set(spec.arguments.__struct_fields__)


def test_every_command_stands_in_the_readme_and_has_a_json_shape() -> None:
    from authority.cli.main import COMMANDS

    readme = (ROOT / "README.md").read_text("utf-8")
    shapes = (ROOT / "docs" / "json.md").read_text("utf-8")
    assert [name for name in COMMANDS if f"`authority {name}" not in readme] == ["resume"]
    assert "`authority halt [RUN]`, `resume" in readme
    assert [name for name in COMMANDS if f"`{name}" not in shapes] == []


def test_every_document_is_linked_from_the_readme() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text("utf-8")))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked
