# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it, against a server that misbehaves, a hub that redirects and a SIMULATED registry."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible_collections.llm.cluster.plugins.module_utils import _model_source
from ansible_collections.llm.cluster.plugins.modules import model_source
from simulated._faults import Document, FaultyServer
from simulated.registry import Registry

CONTENT = b"GGUF" + bytes(1000)
HEX = hashlib.sha256(CONTENT).hexdigest()
BASE64 = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
OTHER = "0" * 64


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the module for some sources and returns what it prints."""

    def run(*sources: dict[str, str], check: bool = False) -> Any:
        models = [{"name": f"m{n}", "engine": "e", "insecure": True, "source": one} for n, one in enumerate(sources)]
        arguments = {"models": models, "network_timeout": 5, "_ansible_check_mode": check}
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(SystemExit):
            model_source.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_a_registry_tells_the_manifests_digest_and_all_sizes(ask: Any, registry: Registry) -> None:
    published = registry.publish("tiny:1b", size=5000)
    source = {"registry": f"{registry.netloc}/library/tiny:1b"}
    for check in (False, True):
        result = ask(source, check=check)
        (found,) = result["models"]
        assert (result["changed"], found["name"], found["engine"]) == (False, "m0", "e")
        assert (found["digest"], found["problem"]) == (published.digest, "")
        assert found["size"] == sum(
            len(registry.documents[path].content) for path in registry.documents if "blobs" in path
        )
    assert not [request for request in registry.requests if "blobs" in request[1]]
    moved = registry.publish("tiny:1b", b"new")
    assert ask(source)["models"][0]["digest"] == moved.digest


@pytest.mark.parametrize(
    ("headers", "beside", "digest"),
    [
        ({"Repr-Digest": f"sha-512=:AAAA:, sha-256=:{BASE64}:"}, None, HEX),
        ({"Digest": f"SHA-256={BASE64}"}, None, HEX),
        ({"X-Linked-ETag": f'"{HEX}"'}, None, HEX),
        ({"ETag": f'"{HEX}"'}, None, ""),  # means nothing
        ({"X-Linked-ETag": '"123"'}, None, ""),
        ({}, f"{HEX}  x.gguf\n", HEX),
        ({}, f"{HEX.upper()}\n", HEX),
        ({}, f"{OTHER}  y.gguf\n{HEX} *x.gguf\n", HEX),
        ({}, f"SHA256 (x.gguf) = {HEX}\n", HEX),
        ({}, f"{OTHER}  y.gguf\n{HEX}  z.gguf\n", ""),
        ({}, "<html>not found</html>", ""),
        ({"Repr-Digest": f"sha-256=:{BASE64}:"}, f"{OTHER}  x.gguf\n", HEX),
        ({}, None, ""),
    ],
)
def test_a_server_that_knows_and_one_that_does_not(
    ask: Any, registry: Registry, headers: dict[str, str], beside: str | None, digest: str
) -> None:
    registry.documents["/x.gguf"] = Document(CONTENT, headers=headers)
    if beside is not None:
        registry.documents["/x.gguf.sha256"] = Document(beside.encode())
    (found,) = ask({"url": registry.url + "/x.gguf"})["models"]
    assert (found["digest"], found["size"]) == ("sha256:" + digest if digest else "", len(CONTENT))
    assert ("does not say which version this is" in found["problem"]) is not bool(digest)


def test_what_goes_wrong_is_in_the_answer_and_the_others_are_asked(ask: Any, registry: Registry) -> None:
    published = registry.publish("tiny:1b")
    registry.publish("private:1")
    registry.fault("/v2/library/private/manifests/1", status=401)
    registry.documents["/v2/library/odd/manifests/1"] = Document(b"<html>")
    free = FaultyServer()
    free.server_close()
    name = registry.netloc + "/library/"
    found = ask(
        *({"registry": name + model} for model in ("tiny:1b", "none:1", "private:1", "odd:1")),
        {"url": registry.url + "/none.gguf"},
        {"url": free.url + "/x.gguf"},
        {"url": "ftp://x/y"},
    )["models"]
    words = ["404", "-e lock_from=NODE", "not a manifest", "404", "cannot be reached", "neither an http"]
    assert [one["name"] for one in found] == [f"m{number}" for number in range(7)]
    assert (found[0]["digest"], found[0]["problem"]) == (published.digest, "")
    for one, part in zip(found[1:], words, strict=True):
        assert one["digest"] == ""
        assert part in one["problem"]


def test_a_login_is_used_and_never_shown(ask: Any, registry: Registry) -> None:
    registry.documents["/x.gguf"] = Document(CONTENT)
    (found,) = ask({"url": registry.url.replace("//", "//anna:hush@") + "/x.gguf"})["models"]
    assert "does not say" in found["problem"]
    assert "hush" not in found["problem"]


class Hub(BaseHTTPRequestHandler):
    """Says which file it is where it redirects; the store behind it refuses HEAD."""

    head_allowed = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        if not self.head_allowed:
            self.send_error(403)
        else:
            self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/resolve/x.gguf":
            self.send_response(302)
            self.send_header("Location", "/store/x")
            self.send_header("X-Linked-ETag", f'"{HEX}"')
            self.end_headers()
            return
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes 0-0/{len(CONTENT)}")
        self.send_header("Content-Length", "1" if "Range" in self.headers else str(len(CONTENT)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"G")


@pytest.mark.parametrize("head_allowed", [True, False])
def test_a_hub_says_it_where_it_redirects(ask: Any, monkeypatch: pytest.MonkeyPatch, head_allowed: bool) -> None:
    monkeypatch.setattr(Hub, "head_allowed", head_allowed)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        (found,) = ask({"url": f"http://127.0.0.1:{hub.server_port}/resolve/x.gguf"})["models"]
        hub.shutdown()
    assert found == {"name": "m0", "engine": "e", "digest": "sha256:" + HEX, "size": len(CONTENT), "problem": ""}


def test_what_is_beside_is_found_before_the_query(registry: Registry) -> None:
    options = _model_source._fetch.HttpOptions(timeout=5)
    registry.documents["/x.gguf.sha256"] = Document(HEX.encode())
    assert _model_source.digest_beside(registry.url + "/x.gguf?token=1", options) == "sha256:" + HEX
