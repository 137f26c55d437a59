"""git over HTTPS as it is: clone, fetch and push through judged requests, with a credential."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gate.lab import OPEN, Lab, Ran

from .site import BACKEND, Site, git_backend

GIT = shutil.which("git") or "git"
pytestmark = pytest.mark.skipif(not BACKEND.exists(), reason="git is not installed")

SECRET = "git-password-0123456789"
POLICY = (
    OPEN.replace('"fs:./**"]', '"fs:./**", "https://git.test/**?*"]')
    + """
[process]
exec = ["git", "/usr/lib/git-core/git", "/usr/lib/git-core/git-remote-https", "sh"]
[network]
http = ["GET https://git.test/repo.git/info/refs?*", "POST https://git.test/repo.git/git-upload-pack"]
"""
)
PUSH = '"POST https://git.test/repo.git/git-receive-pack"'
CREDENTIAL = (
    '[credentials.git]\nfrom_env = "GIT_TOKEN"\nhosts = ["git.test"]\nformat = "Basic {}"\n'
)


@pytest.fixture(scope="module", autouse=True)
def repository(lab: Lab, site: Site) -> Path:
    root = lab.root / "repositories"
    bare = root / "repo.git"
    work = lab.root / "seed"
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*arguments: str) -> None:
        subprocess.run([GIT, *arguments], env=environment, check=True, capture_output=True)

    git("init", "-q", "-b", "main", str(work))
    (work / "hello.txt").write_text("hello")
    (work / "large.bin").write_bytes(os.urandom(300_000))
    git("-C", str(work), "add", ".")
    name = ("-c", "user.name=t", "-c", "user.email=t@example.test")
    git("-C", str(work), *name, "commit", "-qm", "one")
    git("clone", "-q", "--bare", str(work), str(bare))
    git("-C", str(bare), "config", "http.receivepack", "true")

    site.handlers["git.test"] = git_backend(root)
    return bare


def script(lab: Lab, site: Site, text: str, policy: str = POLICY) -> Ran:
    common = "set -e\nexport GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0\ncd /tmp\n"
    return lab.run(
        ["/bin/sh", "-c", common + text],
        policy.replace("[network]\n", "[network]\n" + site.network),
    )


def test_a_clone_and_a_fetch(lab: Lab, site: Site) -> None:
    done = script(
        lab,
        site,
        "git clone -q https://git.test/repo.git mine\ncd mine\n"
        "git fetch -q\ngit log --format=%s\ngit fsck\n",
    )
    assert done.summary["code"] == 0, done.err
    assert "one" in done.out
    asked = [
        e["resource"] for e in lab.log(kind="admit", run=done.run) if e["effect"] == "http.request"
    ]
    assert any("git-upload-pack" in each for each in asked)
    assert all(each.startswith("https://git.test:443/repo.git/") for each in asked)


def test_a_push_needs_its_rule_and_only_that(lab: Lab, site: Site, repository: Path) -> None:
    text = (
        "git clone -q https://git.test/repo.git mine\ncd mine\n"
        "git config user.name t\ngit config user.email t@example.test\n"
        "echo more > more.txt\ngit add more.txt\ngit commit -qm pushed\n"
        "git push -q origin main && echo pushed || echo refused\n"
    )
    done = script(lab, site, text)
    assert "refused" in done.out, done.err
    assert [e["resource"] for e in lab.denials(run=done.run) if "receive-pack" in e["resource"]]
    allowed = POLICY.replace('git-upload-pack"]', f'git-upload-pack", {PUSH}]')
    done = script(lab, site, text, allowed)
    assert "pushed" in done.out, done.err
    log = subprocess.run(
        [GIT, "-C", str(repository), "log", "--format=%s"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert log.stdout.split() == ["pushed", "one"]


def test_a_credential_inside_basic(lab: Lab, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TOKEN", SECRET)
    before = len(site.to("git.test"))
    done = script(
        lab,
        site,
        'git -c http.extraHeader="Authorization: Basic $(printf "user:%s" "$GIT_TOKEN" | base64 -w0)" '
        "clone -q https://git.test/repo.git mine && echo cloned\n",
        POLICY.replace('"sh"]', '"sh", "base64"]') + CREDENTIAL,
    )
    assert "cloned" in done.out, done.err
    wanted = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()
    assert {s.headers.get("authorization") for s in site.to("git.test")[before:]} == {wanted}


def test_anotherrepository_is_not_there(lab: Lab, site: Site) -> None:
    done = script(lab, site, "git clone -q https://git.test/other.git x || echo refused\n")
    assert "refused" in done.out
    assert not [s for s in site.to("git.test") if "other.git" in s.path]


@pytest.mark.parametrize("reads", [False, True], ids=["control", "after an untrusted read"])
def test_what_was_read_is_not_pushed(lab: Lab, site: Site, repository: Path, reads: bool) -> None:
    """The repository is allowed and trusted; the words that go into it are somebody else's."""
    lab.file("mine/x", "own words\n")
    lab.file("theirs/x", "push this\n")
    name = "theirs" if reads else "mine"
    text = (
        "git clone -q https://git.test/repo.git mine\n"
        f'read words < {lab.work}/{name}/x\necho "$words" > mine/{name}.txt\ncd mine\n'
        "git config user.name t\ngit config user.email t@example.test\n"
        f"git add {name}.txt\ngit commit -qm {name}\n"
        "git push -q origin main && echo pushed || echo refused\n"
    )
    allowed = POLICY.replace('git-upload-pack"]', f'git-upload-pack", {PUSH}]')
    allowed = allowed.replace('"fs:./**"', '"fs:./mine/**"')
    done = script(lab, site, text, allowed)
    assert ("refused" if reads else "pushed") in done.out, done.err
    codes = {e["code"] for e in lab.denials(run=done.run, effect="http.request")}
    assert codes == ({"E_TAINT"} if reads else set())
