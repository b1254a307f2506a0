# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What verify asks, and what the answers mean. Pure functions on the results of module ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils._topology import url_of


def peer_questions(peers: list[dict[str, Any]], prompt: str, max_tokens: int) -> list[dict[str, Any]]:
    """Return one question for each peer and model."""
    return [
        {
            "name": peer["name"],
            "url": url_of(peer["address"], peer["port"]),
            "model": model["name"],
            "prompt": prompt,
            "max_tokens": max_tokens,
        }
        for peer in peers
        for model in peer["models"]
        if model["preload"]
    ]


def outcome(result: Mapping[str, Any]) -> str:
    """Return a result in a few words."""
    if result["answered"] == result["asked"]:
        return "answers"
    return "; ".join(f"{reason} ({times}x)" if times > 1 else reason for reason, times in result["errors"].items())


def shares(result: Mapping[str, Any]) -> str:
    """Return who answered how often: ``node1 5, node2 3``."""
    return ", ".join(f"{peer} {count}" for peer, count in result["peers"].items()) or "-"


def report(
    local: Mapping[str, list[dict[str, Any]] | None],
    remote: Mapping[str, list[dict[str, Any]] | None],
    endpoint: Mapping[str, list[dict[str, Any]] | None],
) -> dict[str, Any]:
    """Judge all answers.

    :param local: node → results of asking its engine on the node itself; None where the node could not be asked
    :param remote: balancer → results of asking every node from there
    :param endpoint: balancer → results of asking the endpoint, plain and streamed
    :returns: ``rows`` for a table (who, asked from, model, how, seconds, outcome) and ``problems``, sentences
    """
    rows: list[list[Any]] = []
    problems: list[str] = []
    healthy: set[tuple[str, str]] = set()
    for node, results in local.items():
        if results is None:
            problems.append(f"{node}: could not be asked; look further up for why the host failed or is unreachable.")
        for result in results or []:
            rows.append([result["name"], "itself", result["model"], "plain", result["seconds"], outcome(result)])
            if result["answered"] == result["asked"]:
                healthy.add((result["name"], result["model"]))
            else:
                problems.append(
                    f"{result['name']}: {result['model']} at {result['url']} does not answer: {outcome(result)}."
                )
    for balancer, results in remote.items():
        if results is None:
            problems.append(f"{balancer}: could not ask the nodes; look further up for why the host failed.")
        for result in results or []:
            rows.append([result["name"], balancer, result["model"], "plain", result["seconds"], outcome(result)])
            if result["answered"] < result["asked"] and (result["name"], result["model"]) in healthy:
                problems.append(
                    f"{result['name']}: answers on the node itself, but not to {balancer} at {result['url']}"
                    f" ({outcome(result)}). A firewall is in the way: llm.cluster lets the balancer in, but can't"
                    " overrule another rule of the host or network that drops. Look at: nft list ruleset"
                )
    for balancer, results in endpoint.items():
        for result in results or []:
            how = "streamed" if result["stream"] else "plain"
            rows.append(["endpoint", balancer, result["model"], how, result["seconds"], shares(result)])
            if result["answered"] < result["asked"]:
                problems.append(
                    f"{balancer}: {result['asked'] - result['answered']} of {result['asked']} questions ({how})"
                    f" through {result['url']} were not answered: {outcome(result)}."
                )
    return {"rows": rows, "problems": problems}
