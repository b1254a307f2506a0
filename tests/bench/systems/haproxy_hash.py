# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy with what its manual has for engines with caches: a chat goes where its hash says."""

from __future__ import annotations

from bench.systems import haproxy
from bench.systems.base import Peer

# What its manual says of each: a hash of what an expression finds in the request; consistent hashing keeps most chats
# where they are when a server goes; with hash-balance-factor a server that has so many per cent of the average number
# of requests is passed over, for the next one on the ring ("values between 125 and 200"). Tried for 10 s each with
# multi_turn at load 0.65: 125, 150 and 200 gave first tokens after 99, 89 and 76 ms on average.
BALANCE = """\
    balance hash var(txn.first)
    hash-type consistent
    hash-balance-factor 200
    option http-buffer-request
"""
# A chat's first question is in all its turns; what the system's prompt says all chats may share.
FIRST = """\
    http-request set-var(txn.role) req.body,json_query('$.messages[0].role')
    http-request set-var(txn.first) req.body,json_query('$.messages[0].content')
    http-request set-var(txn.first) req.body,json_query('$.messages[1].content') if { var(txn.role) -m str system }
"""


class HAProxyHash(haproxy.HAProxy):
    """All slots busy: a request waits for the server that its chat belongs to, also while others are idle, unless that
    one has twice as many requests as the average; 503 after the time.

    All else is as with HAProxy, leastconn.
    """

    name = "haproxy_hash"
    label = "HAProxy, hash of the chat"
    for_caches = True

    def settings(self, peers: list[Peer]) -> str:
        return configuration(peers, self.port)


def configuration(peers: list[Peer], port: int) -> str:
    """HAProxy's as it is, but for the choice of a server."""
    text = haproxy.configuration(peers, port)
    for line, instead in (("    balance leastconn\n", BALANCE), (" backlog 4096\n", " backlog 4096\n" + FIRST)):
        assert text.count(line) == 1, f"HAProxy's configuration has no such line any more: {line}"
        text = text.replace(line, instead)
    return text
