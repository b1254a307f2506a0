# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import http.client
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator

import pytest
from simulated import releases


@pytest.fixture
def server() -> Iterator[releases.Releases]:
    server = releases.Releases()
    server.publish("9.9.1")
    server.start()
    yield server
    server.stop()


def get(server: releases.Releases, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.netloc, timeout=10)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_release_is_the_same_bytes_each_time() -> None:
    assert releases.release("9.9.1") == releases.release("9.9.1")
    assert releases.release("9.9.1") != releases.release("9.9.2")


def test_sums_are_in_the_form_of_the_real_file(server: releases.Releases) -> None:
    lines = get(server, "/v9.9.1/sha256sum.txt")[1].decode().splitlines()
    assert len(lines) == 4
    for line in lines:
        digest, name = line.split("  ./")
        assert hashlib.sha256(get(server, f"/v9.9.1/{name}")[1]).hexdigest() == digest


@pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd program to check the frame with")
def test_the_archive_is_what_zstd_and_tar_understand() -> None:
    content = releases.release("9.9.1")[releases.archive_name("amd64")]
    plain = subprocess.run(["zstd", "-dc"], input=content, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        program = tar.extractfile("bin/ollama")
        assert tar.getmember("bin/ollama").mode == 0o755
        assert program is not None
        assert b'VERSION = "9.9.1"' in program.read()


def test_cut_wrong_bytes_and_status(server: releases.Releases) -> None:
    path = "/v9.9.1/ollama-linux-amd64.tar.zst"
    whole = get(server, path)[1]
    server.fault(path, cut_after=1000, times=1)
    with pytest.raises(http.client.IncompleteRead) as cut:
        get(server, path)
    assert cut.value.partial == whole[:1000]
    assert get(server, path, {"Range": "bytes=1000-"}) == (206, whole[1000:])
    server.fault(path, wrong_bytes=True, times=1)
    wrong = get(server, path)[1]
    assert wrong != whole
    assert len(wrong) == len(whole)
    server.fault("/v9.9.1/.*", status=503)
    assert get(server, path)[0] == 503


def test_faults_are_set_and_cleared_over_http(server: releases.Releases) -> None:
    connection = http.client.HTTPConnection(server.netloc, timeout=10)
    for body, status in [({"path": "/v9.9.1/.*", "status": 500}, 204), ({"pfad": "x"}, 400)]:
        connection.request("POST", "/_faults", json.dumps(body))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    assert get(server, "/v9.9.1/sha256sum.txt")[0] == 500
    connection.request("DELETE", "/_faults")
    connection.getresponse().read()
    assert get(server, "/v9.9.1/sha256sum.txt")[0] == 200
