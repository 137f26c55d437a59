"""Package installers as they are: pip from an index, npm from a registry, each request judged."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable

import pytest

from gate.lab import OPEN, Lab

from .site import Answer, Seen, Site


def wheel() -> bytes:
    """A wheel with one module, whole as the format wants it."""
    files = {
        "demo_pkg.py": b"def answer():\n    return 42\n",
        "demo_pkg-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: demo-pkg\nVersion: 1.0\n",
        "demo_pkg-1.0.dist-info/WHEEL": (
            b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    files["demo_pkg-1.0.dist-info/RECORD"] = (record + "demo_pkg-1.0.dist-info/RECORD,,\n").encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarball() -> bytes:
    """An npm package with one module."""
    files = {
        "package/package.json": json.dumps(
            {"name": "demo-js", "version": "1.0.0", "main": "i.js"}
        ).encode(),
        "package/i.js": b"module.exports = () => 42;\n",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def index_of(package: bytes) -> Callable[[Seen], Answer]:
    """An index that has this one wheel."""
    digest = hashlib.sha256(package).hexdigest()

    def index(seen: Seen) -> Answer:
        if seen.path == "/simple/demo-pkg/":
            name = "demo_pkg-1.0-py3-none-any.whl"
            page = f'<!DOCTYPE html><a href="/files/{name}#sha256={digest}">{name}</a>'
            return 200, {"Content-Type": "text/html"}, page.encode()
        if seen.path.startswith("/files/"):
            return 200, {"Content-Type": "application/zip"}, package
        return 404, {}, b""

    return index


@pytest.fixture(scope="module", autouse=True)
def _indexes(site: Site) -> None:
    packed = tarball()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()

    def registry(seen: Seen) -> Answer:
        if seen.path == "/demo-js":
            version = {
                "name": "demo-js",
                "version": "1.0.0",
                "main": "i.js",
                "dist": {
                    "tarball": "https://registry.test/demo-js/-/demo-js-1.0.0.tgz",
                    "integrity": integrity,
                },
            }
            found = {
                "name": "demo-js",
                "dist-tags": {"latest": "1.0.0"},
                "versions": {"1.0.0": version},
            }
            return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        if seen.path.endswith(".tgz"):
            return 200, {"Content-Type": "application/octet-stream"}, packed
        return 404, {}, b"{}"

    site.handlers["index.test"] = index_of(wheel())
    site.handlers["registry.test"] = registry


def test_pip_installs_from_an_index(lab: Lab, site: Site) -> None:
    rules = """[network]
http = ["GET https://index.test/simple/**", "GET https://index.test/files/**"]
"""
    policy = f'{OPEN}[process]\nexec = ["{sys.executable}"]\n{rules}{site.network}'
    source = """
import runpy, sys
sys.argv = ["pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--isolated",
            "--index-url", "https://index.test/simple/", "--target", "/tmp/site", NAME]
try:
    runpy.run_module("pip", run_name="__main__")
except SystemExit as end:
    print("ended", end.code)
sys.path.insert(0, "/tmp/site")
import demo_pkg
print(demo_pkg.answer())
"""
    done = lab.run(f"NAME = 'demo-pkg'\n{source}", policy)
    assert "ended 0" in done.out, done.out + done.err
    assert "42" in done.out
    admitted = [
        e["resource"] for e in lab.log(kind="admit", run=done.run) if e["effect"] == "http.request"
    ]
    assert admitted == [
        "https://index.test:443/simple/demo-pkg/",
        "https://index.test:443/files/demo_pkg-1.0-py3-none-any.whl",
    ]
    narrow = policy.replace(', "GET https://index.test/files/**"', "")
    done = lab.run(f"NAME = 'demo-pkg'\n{source}", narrow)
    assert "ended 1" in done.out
    assert "403" in done.out + done.err


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_installs_from_a_registry(lab: Lab, site: Site) -> None:
    rules = '[network]\nhttp = ["GET https://registry.test/**"]\n'
    policy = f'{OPEN}[process]\nexec = ["node", "npm"]\n{rules}{site.network}'
    done = lab.run(
        [
            shutil.which("npm") or "npm",
            "install",
            "--prefix",
            "/tmp/p",
            "--no-audit",
            "--no-fund",
            "--no-update-notifier",
            "--cache",
            "/tmp/cache",
            "--registry",
            "https://registry.test/",
            "demo-js",
        ],
        policy,
    )
    assert done.summary["code"] == 0, done.out + done.err
    assert "added 1 package" in done.out
    admitted = [
        e["resource"] for e in lab.log(kind="admit", run=done.run) if e["effect"] == "http.request"
    ]
    assert "https://registry.test:443/demo-js" in admitted
    assert "https://registry.test:443/demo-js/-/demo-js-1.0.0.tgz" in admitted
