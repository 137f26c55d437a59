"""Files that some trusted tool later executes or obeys: denied for writing unless a rule names them.

Pure. A run that may write a folder could leave something there that acts outside of it afterwards: a
hook, an editor's task, a shell's start file, a build definition. So below a path that may be written
these stay closed, whether they exist yet or not.

Rules
- A path is judged by its names alone, in any folder, and without regard to case (some file systems
  have none). What lies below a folder of the list counts like the folder.
- A rule of `filesystem.write` opens such a path only if it names it: the literal names with which the
  rule begins reach as far as what makes the path one of this list. `./.github/workflows/**` names the
  workflows; `./**` and `./.github/**` do not.
- `Kind.REPOSITORY` (a repository's configuration and hooks) may be written in a repository that the
  run itself made, `Kind.FOLDER` (what Python and its environments load by themselves) in a folder
  that the run itself made, or that the policy names in `process.exec_from`. Whoever saw the run make
  it says so with the verb `OWN`, which no frame from a program can carry, and answers for the further
  conditions (a configuration that names no program, hooks that can't be executed).
- `.git` that is not a directory points to a repository elsewhere, so only a directory may get that
  name, and a directory is not renamed to it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

OWN: Final = "own"
HOME: Final = "home"
"""The verb of what happens in the run's named home, a folder of its own that no path outside names."""
HOME_SEGMENTS: Final = ("home", "agent")


class Kind(StrEnum):
    """Where such a path may be written after all, without a rule that names it."""

    ALWAYS = "nowhere"
    REPOSITORY = "repository"
    FOLDER = "folder"


class Persistent(NamedTuple):
    """Why a path is closed: `what` continues "this is ..."; its first `at` names make it so."""

    kind: Kind
    what: str
    at: int


_FOLDERS: Final = {
    ".vscode": "an editor's configuration",
    ".idea": "an editor's configuration",
    ".fleet": "an editor's configuration",
    ".zed": "an editor's configuration",
    ".devcontainer": "an editor's configuration",
    ".claude": "an agent's configuration",
    ".codex": "an agent's configuration",
    ".cursor": "an agent's configuration",
    ".gemini": "an agent's configuration",
    ".windsurf": "an agent's configuration",
    ".continue": "an agent's configuration",
    ".roo": "an agent's configuration",
    ".circleci": "a build definition",
    ".buildkite": "a build definition",
    ".husky": "a repository's hooks",
    ".ssh": "the configuration of ssh",
}
_PAIRS: Final = {
    (".github", "workflows"): "a build definition",
    (".github", "actions"): "a build definition",
    (".gitea", "workflows"): "a build definition",
    (".forgejo", "workflows"): "a build definition",
    (".config", "autostart"): "a desktop's start file",
    (".config", "systemd"): "a service definition",
    (".config", "fish"): "a shell's start file",
    (".config", "git"): "git's configuration",
    (".config", "nvim"): "an editor's configuration",
    (".config", "pip"): "pip's configuration",
}
_FILES: Final = {
    **dict.fromkeys(
        (".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".bash_aliases", ".profile"),
        "a shell's start file",
    ),
    **dict.fromkeys(
        (".zshrc", ".zshenv", ".zprofile", ".zlogin", ".zlogout", ".kshrc", ".cshrc", ".tcshrc"),
        "a shell's start file",
    ),
    **dict.fromkeys((".login", ".xprofile", ".xinitrc", ".xsessionrc"), "a shell's start file"),
    **dict.fromkeys((".envrc", ".env.fish"), "a file that a shell loads"),
    **dict.fromkeys((".mcp.json", ".claude.json", ".aider.conf.yml"), "an agent's configuration"),
    **dict.fromkeys(
        (".vimrc", ".exrc", ".nvimrc", ".nvim.lua", ".emacs"), "an editor's start file"
    ),
    **dict.fromkeys((".dir-locals.el", ".editorrc"), "an editor's configuration"),
    **dict.fromkeys((".gdbinit", ".lldbinit"), "a debugger's start file"),
    **dict.fromkeys((".gitlab-ci.yml", ".gitlab-ci.yaml", "jenkinsfile"), "a build definition"),
    **dict.fromkeys((".travis.yml", ".drone.yml", ".woodpecker.yml"), "a build definition"),
    **dict.fromkeys(("appveyor.yml", ".appveyor.yml", ".cirrus.yml"), "a build definition"),
    **dict.fromkeys(("azure-pipelines.yml", "bitbucket-pipelines.yml"), "a build definition"),
    **dict.fromkeys(
        (".pre-commit-config.yaml", ".pre-commit-config.yml", "lefthook.yml", ".lefthook.yml"),
        "a repository's hooks",
    ),
    **dict.fromkeys((".gitconfig", ".gitmodules"), "git's configuration"),
    **dict.fromkeys(
        (".npmrc", ".yarnrc", ".yarnrc.yml", ".pnpmfile.cjs"), "a package manager's configuration"
    ),
    **dict.fromkeys((".pypirc", ".netrc"), "a file of credentials"),
}
_GIT_FILES: Final = frozenset({"config", "config.worktree", "commondir"})
_PYTHON: Final = frozenset({"sitecustomize.py", "usercustomize.py", "pyvenv.cfg"})
_PYTHON_PACKAGES: Final = frozenset({"sitecustomize", "usercustomize"})
_MAKES_DIRECTORIES: Final = frozenset({"fs.mkdir"})
_REMOVES: Final = frozenset({"fs.delete"})


def persistent(effect: str, segments: tuple[str, ...]) -> Persistent | None:
    """Whether writing there leaves something for later, and what it is."""
    names = [segment.lower() for segment in segments]
    last = len(names) - 1
    inside = -1
    for at, name in enumerate(names):
        if what := _FOLDERS.get(name):
            return Persistent(Kind.ALWAYS, what, at + 1)
        if at and (what := _PAIRS.get((names[at - 1], name))):
            return Persistent(Kind.ALWAYS, what, at + 1)
        if name == ".git" and inside < 0:
            inside = at
        if name in _PYTHON_PACKAGES:
            return Persistent(Kind.FOLDER, "a module that Python loads by itself", at + 1)
    if inside >= 0:
        return _repository(effect, names, inside)
    if last < 0:
        return None
    name = names[last]
    if what := _FILES.get(name):
        return Persistent(Kind.ALWAYS, what, last + 1)
    if name in _PYTHON or name.endswith(".pth"):
        return Persistent(Kind.FOLDER, "a file that Python loads by itself", last + 1)
    if name.startswith("activate") and last and names[last - 1] in ("bin", "scripts"):
        return Persistent(Kind.FOLDER, "an environment's activation script", last + 1)
    return None


def _repository(effect: str, names: list[str], inside: int) -> Persistent | None:
    below = names[inside + 1 :]
    if not below:
        if effect in _MAKES_DIRECTORIES or effect in _REMOVES:
            return None
        return Persistent(Kind.REPOSITORY, "the name of a repository", inside + 1)
    at = _git_dir(below)
    rest = below[at:]
    if not rest:
        return None
    if rest[0] == "hooks":
        return Persistent(Kind.REPOSITORY, "a repository's hooks", inside + 1 + at + 1)
    if len(rest) == 1 and rest[0] in _GIT_FILES:
        return Persistent(Kind.REPOSITORY, "a repository's configuration", inside + 1 + at + 1)
    return None


def _git_dir(below: list[str]) -> int:
    """How many names lead from `.git` to the innermost repository: a submodule's, a worktree's."""
    if below[0] == "worktrees" and len(below) > 2:
        return 2
    if below[0] == "modules" and len(below) > 1:
        # A submodule's path may have any number of names: what looks like configuration or hooks
        # at any depth below is taken for it.
        for at in range(2, len(below)):
            if below[at] == "hooks" or (below[at] in _GIT_FILES and at == len(below) - 1):
                return at
        return len(below)
    return 0
