# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine's place held by nginx, which answers at once: for what a balancer itself costs."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

CONFIGURATION = """
worker_processes 1;
worker_rlimit_nofile 16384;
pid {folder}/stub.pid;
error_log {folder}/stub.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_buffer_size 128k;
    client_max_body_size 16m;
    keepalive_requests 10000000;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{
        {listen}
        default_type application/json;
        location = /health {{ return 200 '{{"status":"ok"}}'; }}
        location = /v1/models {{ return 200 '{models}'; }}
        location / {{ return 200 '{answer}'; }}
    }}
    {more}
}}
"""
PLAIN = """
    upstream stub {{ server {address}:{port}; keepalive 64; keepalive_requests 10000000; }}
    server {{
        listen 127.0.0.1:{plain} backlog=1024;
        access_log {folder}/access.log;  # as the balancer keeps one, too
        location / {{ proxy_pass http://stub; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
"""
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "stub"}]}


class Stub:
    """`with Stub(folder, [("127.0.0.1", 8000)]):` listens on all of these; `plain` is a port with proxy_pass to it."""

    def __init__(self, folder: Path, places: list[tuple[str, int]], plain: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        address, port = self.place = places[0]
        text = CONFIGURATION.format(
            folder=folder,
            listen="\n        ".join(f"listen {address}:{port} backlog=1024;" for address, port in places),
            answer=json.dumps(ANSWER),
            models=json.dumps(MODELS),
            more=PLAIN.format(folder=folder, address=address, port=port, plain=plain) if plain else "",
        )
        self.file = folder / "stub.conf"
        self.file.write_text(text)
        self.pid_file = folder / "stub.pid"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Stub:
        self.pid_file.unlink(missing_ok=True)
        # nginx takes the hang-up of a terminal for a reload: that it ends with us must be asked for.
        command = ["setpriv", "--pdeathsig", "TERM", "nginx", "-c", str(self.file), "-g", "daemon off;"]
        self.process = subprocess.Popen(command)
        try:
            end = time.monotonic() + 5
            while not self.pid_file.exists():  # written when it listens
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the stub does not start: {self.file}")
                time.sleep(0.02)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        assert self.process
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
