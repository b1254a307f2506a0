# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain nginx, without any Lua: what its documentation has for upstreams that take few requests and stream."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from balancer.harness import free_port
from bench.systems.base import ANSWER_SECONDS, WORKERS, Peer, Program, System, weights

# zone: the workers count together, which max_conns needs. keepalive (with HTTP/1.1 and an empty Connection):
# connections to peers are used again. non_idempotent: without it no POST is tried a second time. proxy_buffering off:
# streams pass as they come. The request is buffered (nginx's default), in memory, so that it can be sent again.
CONFIGURATION = """
worker_processes {workers};
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 16384; }}
http {{
    access_log {folder}/nginx-access.log combined buffer=64k flush=1s;
    client_max_body_size 16m;
    client_body_buffer_size 16m;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    keepalive_requests 1000000;
    upstream engines {{
        zone engines 2m;
        least_conn;
        {servers}
        keepalive {idle};
        keepalive_requests 1000000;
        keepalive_timeout 4s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engines;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_connect_timeout 1s;
            proxy_read_timeout {answer}s;
            proxy_next_upstream error timeout http_502 http_503 http_504 non_idempotent;
        }}
    }}
}}
"""


class NginxPlain(System):
    """All slots busy: 502 at once, because only the commercial nginx has a queue.

    A node dies: the first refused connection goes on to the next peer and keeps the dead one out for 10 s; a request
    in its hands is tried elsewhere if nothing of the answer has come; a stream just ends. A node hangs: as many
    requests as make it look the busiest wait on it for the whole read time-out, because nothing probes it.
    """

    name = "nginx_plain"
    label = "nginx, least_conn, max_conns"
    limit = " max_conns={slots}"

    def missing(self) -> str:
        return "" if shutil.which("nginx") else "nginx is not installed: apt install nginx"

    def unfit(self, peers: list[Peer]) -> str:
        if len({frozenset(peer.models) for peer in peers}) > 1:
            return "plain nginx does not read the model in a request's body"
        return ""

    def version(self) -> str:
        said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
        return said.strip().removeprefix("nginx version: ")

    def start(self, peers: list[Peer], folder: Path) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        share = weights(peers, 1000)
        servers = [
            f"server {peer.address}:{peer.port} weight={share[peer.name]}{self.limit.format(slots=peer.slots)};"
            for peer in peers
        ]
        file = folder / "nginx.conf"
        file.write_text(
            CONFIGURATION.format(
                workers=WORKERS,
                folder=folder.resolve(),
                servers="\n        ".join(servers),
                idle=max(32, sum(peer.slots for peer in peers)),
                port=self.port,
                answer=ANSWER_SECONDS,
            )
        )
        command = ["nginx", "-c", str(file.resolve()), "-g", "daemon off;"]
        self.run(Program(command, folder / "nginx.log"), self.listens)


class NginxEngineQueue(NginxPlain):
    """The same without max_conns.

    All slots busy: requests are spread all the same and wait inside the engines, each on the peer that it was given to.
    A node dies or hangs: as with max_conns.
    """

    name = "nginx_engine_queue"
    label = "nginx, least_conn"
    limit = ""
