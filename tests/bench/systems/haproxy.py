# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy with its queue: a server gets no more connections than it has slots, the rest wait in the backend."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from balancer.harness import free_port
from bench.systems.base import ANSWER_SECONDS, QUEUE_SECONDS, WORKERS, Peer, Program, System, weights

# What its manual says of each: maxconn on a server is what makes the rest wait, first come, first served, up to
# `timeout queue`; abortonclose drops those whose client left; leastconn is for long sessions; retry-on with redispatch
# tries a request on another server if its body is still in the buffer, so that is as large as bodies are here;
# http-reuse always is safe with retries on empty responses; observe with on-error takes a server out at the first
# refused connection (without it leastconn goes on choosing the dead one, which has the fewest, until the retries are
# used up: 503). Not shutdown-sessions with it, which would end the session whose refused connection marked the server
# down before that is tried elsewhere. http-no-delay is for readers that wait for each small piece, as of a stream.
CONFIGURATION = """
global
    maxconn 8000
    nbthread {workers}
    tune.bufsize 131072

defaults
    mode http
    balance leastconn
    timeout connect 1s
    timeout client {answer}s
    timeout server {answer}s
    timeout queue {queue}s
    timeout http-request 15s
    timeout check 1s
    option abortonclose
    option http-no-delay
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response 502 503
    http-reuse always
    option httpchk GET /health
    http-check expect status 200
    default-server check inter 2s fastinter 500ms fall 2 rise 2 observe layer4 error-limit 1 on-error mark-down

frontend clients
    bind 127.0.0.1:{port} backlog 4096
{choice}
{backends}
"""
# The model stands in the body, which a backend can be chosen by once it was read.
CHOICE = """    option http-buffer-request
    http-request set-var(txn.model) req.body,json_query('$.model')
"""


class HAProxy(System):
    """All slots busy: requests wait in one queue per backend, first come, first served; 503 after the time.

    A node dies: the first refused connection takes it out; what the node had not begun to answer is tried elsewhere;
    a stream just ends. A node hangs: it gets no more requests after two probes (4.5 s); those that it has wait for the
    whole time-out of an answer.

    Each group of peers that serve the same models is a backend; a peer that is in two groups has its slots in both, as
    servers of different backends cannot share a limit.
    """

    name = "haproxy"
    label = "HAProxy, leastconn"

    def missing(self) -> str:
        return "" if shutil.which("haproxy") else "HAProxy is not installed: apt install haproxy"

    def version(self) -> str:
        said = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True).stdout
        return said.splitlines()[0].removeprefix("HAProxy version ").split()[0]

    def settings(self, peers: list[Peer]) -> str:
        """Its configuration file."""
        return configuration(peers, self.port)

    def start(self, peers: list[Peer], folder: Path) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "haproxy.cfg"
        file.write_text(self.settings(peers))
        self.run(Program(["haproxy", "-db", "-f", str(file.resolve())], folder / "haproxy.log"), self.listens)


def groups(peers: list[Peer]) -> dict[tuple[str, ...], list[str]]:
    """Names of the peers that serve the same models → those models."""
    found: dict[tuple[str, ...], list[str]] = {}
    for model in dict.fromkeys(model for peer in peers for model in peer.models):
        found.setdefault(tuple(peer.name for peer in peers if model in peer.models), []).append(model)
    return found


def configuration(peers: list[Peer], port: int) -> str:
    share, by_name = weights(peers, 256), {peer.name: peer for peer in peers}
    choice, backends = "", []
    for number, (names, models) in enumerate(groups(peers).items()):
        choice += f"    use_backend engines{number} if {{ var(txn.model) -m str {' '.join(models)} }}\n"
        backends.append(f"backend engines{number}")
        for peer in (by_name[name] for name in names):
            place = f"{peer.address}:{peer.port}"
            backends.append(f"    server {peer.name} {place} maxconn {peer.slots} weight {share[peer.name]}")
    choice = CHOICE + choice if len(groups(peers)) > 1 else ""
    return CONFIGURATION.format(
        workers=WORKERS,
        answer=ANSWER_SECONDS,
        queue=QUEUE_SECONDS,
        port=port,
        choice=choice + "    default_backend engines0",
        backends="\n".join(backends),
    )
