# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""GET /metrics, read by Prometheus's own parser; who may see it; the access log."""

from __future__ import annotations

import concurrent.futures
import json
import re
import time
from typing import Any

import pytest
from balancer.harness import KEY, ROOT, Balancer, MakeBalancer, MakeEngine, hashed, table, wait_for
from prometheus_client.parser import text_string_to_metric_families

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 16},
}
PREFIX = "llm_cluster_"


class Scrape:
    """One answer of /metrics."""

    def __init__(self, balancer: Balancer) -> None:
        answer = balancer.ask("GET", "/metrics", key=None)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = answer.body.decode()
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}

    def value(self, name: str, **labels: str) -> float:
        """The sample of exactly these labels, 0 if there is none."""
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == PREFIX + name and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def labels(self, name: str, label: str) -> set[str]:
        found = [s for family in self.families.values() for s in family.samples if s.name == PREFIX + name]
        return {sample.labels[label] for sample in found}


def scrape_when(balancer: Balancer, name: str, value: float, **labels: str) -> Scrape:
    """Another worker's sums arrive half a second later at most."""

    def look() -> Scrape | None:
        seen = Scrape(balancer)
        return seen if seen.value(name, **labels) == value else None

    seen: Scrape = wait_for(look, 3, f"{name}{labels} is {value}")
    return seen


@pytest.fixture
def fresh(own_balancer: MakeBalancer) -> Balancer:
    """A balancer that has counted nothing yet."""
    return own_balancer(workers=2)


def test_counts_what_happened(fresh: Balancer, engine: MakeEngine) -> None:
    one = engine("n1", usage=USAGE, service_time=0.06)
    fresh.put(table(one, engine("n2", models=["other"])))
    for stream in (False, True, True):
        assert fresh.chat(stream=stream).status == 200
    assert fresh.chat(model="nobody").status == 404
    assert fresh.ask("GET", "/v1/models").status == 200
    assert fresh.chat(key="wrong").status == 401
    seen = scrape_when(fresh, "requests_total", 3, model="m", peer="n1", status="200")
    wait_for(lambda: Scrape(fresh).value("requests_total", model="", peer="", status="401") == 1)
    seen = Scrape(fresh)
    assert seen.value("requests_total", model="", peer="", status="404") == 1
    assert seen.value("tokens_total", model="m", kind="prompt") == 60
    assert seen.value("tokens_total", model="m", kind="completion") == 21
    assert seen.value("tokens_total", model="m", kind="cached") == 48
    assert seen.value("key_requests_total", key="tester", status="2xx") == 4
    assert seen.value("key_requests_total", key="tester", status="4xx") == 1
    for name in ("time_to_first_byte_seconds", "request_duration_seconds"):
        assert seen.value(f"{name}_count", model="m") == 3
        assert 3 * 0.05 < seen.value(f"{name}_sum", model="m") < 3
        assert seen.value(f"{name}_bucket", model="m", le="0.05") == 0
        assert seen.value(f"{name}_bucket", model="m", le="+Inf") == 3
    assert seen.value("queue_wait_seconds_count") == 3
    assert seen.value("errors_total", code="model_not_found") == 1
    # nginx itself refuses what is too large.
    assert fresh.ask(body=b"x" * (5 << 20)).status == 413
    scrape_when(fresh, "requests_total", 1, model="", peer="", status="413")


def test_format_is_whole(fresh: Balancer, engine: MakeEngine) -> None:
    fresh.put(table(engine("n1", usage=USAGE)))
    assert fresh.chat().status == 200
    seen = scrape_when(fresh, "requests_total", 1, model="m", peer="n1", status="200")
    lines = seen.text.splitlines()
    assert seen.text.endswith("\n")
    helps = [line.split()[2] for line in lines if line.startswith("# HELP ")]
    types = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert helps == types, "each family has both, once"
    assert len(set(helps)) == len(helps)
    samples = [line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")]
    assert len(set(samples)) == len(samples), "no sample twice"
    for name, family in seen.families.items():
        assert name.startswith(PREFIX), name
        assert family.documentation, name
        assert family.type in ("counter", "gauge", "histogram"), name
    for family in (f for f in seen.families.values() if f.type == "histogram"):
        buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
        assert buckets == sorted(buckets), "buckets are cumulative (one set of labels here)"
        count = next(s.value for s in family.samples if s.name.endswith("_count"))
        assert buckets[-1] == count


def test_documented(fresh: Balancer) -> None:
    names = set(re.findall(r"# TYPE (\S+) ", Scrape(fresh).text))
    text = (ROOT / "docs/monitoring.md").read_text()
    table_rows = "\n".join(line for line in text.splitlines() if line.startswith("| `llm_cluster_"))
    assert set(re.findall(r"llm_cluster_\w+", table_rows)) == names
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bllm_cluster_\w+", text)}
    assert used == names, "the rules use metrics that exist"


def test_access_log_is_documented() -> None:
    template = (ROOT / "roles/balancer/templates/nginx.conf.j2").read_text()
    fields = re.findall(r'"(\w+)":', template[template.index("log_format llm") : template.index("access_log {{")])
    text = (ROOT / "docs/monitoring.md").read_text()
    assert len(fields) > 15
    assert [field for field in fields if f"`{field}`" not in text] == []


def test_gauges_say_what_is(fresh: Balancer, engine: MakeEngine) -> None:
    one = engine("n1", service_time=0.8, peer={"slots": 2})
    two = engine("n2", models=["other"])
    fresh.put(table(one, two))
    fresh.admin("POST", "/peers/n2/drain", {"owner": "operator"})
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(fresh.chat) for _ in range(3)]
        wait_for(lambda: fresh.state()["peers"][0]["busy"] == 2 and one.running == 2)
        time.sleep(0.1)
        seen = Scrape(fresh)
        assert all(answer.result().status == 200 for answer in asked)
    assert seen.value("in_flight", peer="n1") == 2
    assert seen.value("slots", peer="n1") == 2
    assert seen.value("queue_length") == 1
    assert seen.value("queue_bytes") > 0
    assert seen.value("queue_oldest_seconds") > 0
    assert seen.value("peer_up", peer="n1") == 1
    assert seen.value("peer_drained", peer="n1") == 0
    assert seen.value("peer_drained", peer="n2") == 1
    assert seen.value("peer_info", peer="n2", node="n2", engine="llama_cpp") == 1
    assert seen.value("workers") == 2
    assert seen.value("shared_memory_bytes", dict="llm_metrics") == 8 << 20
    two.stop()
    wait_for(lambda: Scrape(fresh).value("peer_up", peer="n2") == 0)
    scrape_when(fresh, "ejections_total", 1, peer="n2")
    waited = scrape_when(fresh, "queue_wait_seconds_count", 3)
    assert waited.value("queue_wait_seconds_bucket", le="0.25") == 2, "two found a free slot, one waited"
    two.start()
    scrape_when(fresh, "returns_total", 1, peer="n2")


def test_errors_retries_and_clients_that_leave(fresh: Balancer, engine: MakeEngine) -> None:
    good, bad = engine("good"), engine("bad", mode="die")
    fresh.put(table(good, bad, policy="weighted_round_robin"))
    for _ in range(4):
        assert fresh.chat().status == 200
    wait_for(lambda: Scrape(fresh).value("retries_total", reason="closed") >= 1, 3, "a retry is counted")
    good.mode = "break_stream"
    bad.stop()
    wait_for(lambda: fresh.peer("bad")["health"] == "down")
    with pytest.raises(Exception, match="IncompleteRead"):
        fresh.chat(stream=True)
    scrape_when(fresh, "errors_total", 1, code="stream_broken")
    good.mode, good.service_time = "ok", 5
    connection = fresh.connection()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
    wait_for(lambda: good.running == 1)
    connection.close()
    scrape_when(fresh, "requests_total", 1, model="m", peer="good", status="499")


def test_waits_that_end_in_the_queue(fresh: Balancer, engine: MakeEngine) -> None:
    one = engine("n1", service_time=1.5, peer={"slots": 1})
    fresh.put(table(one, limits={"queue_timeout": 0.4, "queue_length": 1}))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(fresh.chat)
        wait_for(lambda: one.running == 1)
        waits = pool.submit(fresh.chat)
        wait_for(lambda: Scrape(fresh).value("queue_length") == 1)
        assert fresh.chat().code == "queue_full"
        assert waits.result().code == "queue_timeout"
        assert first.result().status == 200
    seen = scrape_when(fresh, "errors_total", 1, code="queue_timeout")
    assert seen.value("errors_total", code="queue_full") == 1
    assert seen.value("requests_total", model="m", peer="", status="503") == 2
    wait_for(lambda: Scrape(fresh).value("queue_wait_seconds_count") == 2, 3, "one was served, one waited in vain")
    assert Scrape(fresh).value("queue_wait_seconds_bucket", le="0.25") == 1
    minute = fresh.ask("GET", "/cluster/state", key=None).json["minute"]
    assert minute["timed_out"] == pytest.approx(1 / 3)


def test_the_last_minute_of_each_peer(fresh: Balancer, engine: MakeEngine) -> None:
    one, two = engine("n1", service_time=0.2, peer={"slots": 1}), engine("n2", models=["other"])
    fresh.put(table(one, two, limits={"queue_timeout": 1}))
    assert "latency" not in fresh.peer("n1")["minute"], "no mean of nothing"
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(fresh.chat) for _ in range(4)] + [pool.submit(fresh.chat, model="other")]
        waiting = wait_for(lambda: fresh.peer("n1")["waiting"])
        assert fresh.peer("n2")["waiting"] == 0, "what waits there may not go here"
        assert all(answer.result().status == 200 for answer in asked)
    assert 1 <= waiting <= 3
    wait_for(lambda: Scrape(fresh).value("requests_total", model="m", peer="n1", status="200") == 4)
    state = fresh.state()
    minutes = {peer["name"]: peer["minute"] for peer in state["peers"]}
    rates = {name: minute["requests_per_minute"] for name, minute in minutes.items()}
    assert rates["n1"] == pytest.approx(4 * rates["n2"])
    assert state["minute"]["requests_per_minute"] == pytest.approx(rates["n1"] + rates["n2"])
    assert minutes["n1"]["answered_per_minute"] == pytest.approx(rates["n1"])
    assert 0.2 <= minutes["n1"]["latency"] < 2
    assert minutes["n1"]["timed_out"] == 0
    # A peer that went takes its sums with it.
    assert fresh.put(table(two, default_model="other")).status == 200
    assert fresh.put(table(one, two)).status == 200
    assert fresh.peer("n1")["minute"]["requests_per_minute"] == 0
    assert fresh.peer("n2")["minute"]["requests_per_minute"] > 0


def test_labels_come_from_the_table_only(fresh: Balancer, engine: MakeEngine) -> None:
    strange = 'a"b\\c<script>'
    one, two = engine("n1", models=["m", strange]), engine("n2")
    fresh.put(table(one, two, policy="weighted_round_robin"))
    for i in range(20):
        fresh.chat(model=f"made-up-{i}")
        fresh.ask("GET", f"/made-up-{i}")
    assert fresh.chat(model=strange).status == 200
    for _ in range(4):
        fresh.chat()
    seen = scrape_when(fresh, "requests_total", 1, model=strange, peer="n1", status="200")
    wait_for(lambda: Scrape(fresh).value("requests_total", model="", peer="", status="404") == 40)
    assert seen.labels("requests_total", "model") <= {"", "m", strange}
    assert Scrape(fresh).labels("requests_total", "peer") == {"", "n1", "n2"}
    assert "made-up" not in seen.text
    # A peer and a key that went, and what was counted under their names.
    keys = [{"name": "second", "sha256": hashed("sk-second")}]
    fresh.put(table(one, keys=keys))
    assert fresh.chat(key="sk-second").status == 200
    seen = scrape_when(fresh, "key_requests_total", 1, key="second", status="2xx")
    assert seen.labels("requests_total", "peer") == {"", "n1"}
    assert seen.labels("key_requests_total", "key") == {"second"}


def test_counts_survive_a_reload(fresh: Balancer, engine: MakeEngine) -> None:
    fresh.put(table(engine("n1", tokens=10, gap=0.1)))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stream = pool.submit(fresh.chat, stream=True)
        wait_for(lambda: fresh.busy() == 1)
        assert fresh.chat().status == 200
        fresh.reload()
        assert stream.result().status == 200
    # The stream was counted by a worker that had been told to end.
    scrape_when(fresh, "requests_total", 2, model="m", peer="n1", status="200")


def test_nothing_secret(fresh: Balancer, engine: MakeEngine) -> None:
    one = engine("n1")
    fresh.put(table(one))
    fresh.ask(body={"model": "m", "messages": [{"role": "user", "content": "my secret prompt"}]})
    time.sleep(0.6)
    texts = [fresh.ask("GET", path, key=None).body.decode() for path in ("/metrics", "/cluster", "/cluster/state")]
    texts.append((fresh.dir / "access.log").read_text())
    for text in texts:
        assert KEY not in text
        assert hashed(KEY) not in text
        assert "secret prompt" not in text
        assert str(one.port) not in text or str(one.port) in str(fresh.port)


def test_surface_and_addresses(fresh: Balancer, engine: MakeEngine) -> None:
    fresh.put(table(engine("n1")))
    for method, path in [
        ("GET", "/cluster/x"),
        ("GET", "/metrics/"),
        ("POST", "/metrics"),
        ("PUT", "/cluster"),
        ("DELETE", "/cluster/state"),
        ("GET", "/cluster/../cluster/x"),
    ]:
        answer = fresh.ask(method, path, key=None)
        assert (answer.status, answer.code) == (404, "not_found"), path
    assert fresh.ask("HEAD", "/metrics", key=None).status == 200
    fresh.render(balancer_status_allow=["10.255.0.0/16"])
    fresh.reload()

    def refused() -> bool:
        answer = fresh.ask("GET", "/metrics", key=None)
        return answer.status == 403 and answer.code == "forbidden"

    wait_for(refused, 5, "another address is refused")
    for path in ("/cluster", "/cluster/state", "/cluster/x"):
        assert fresh.ask("GET", path).status == 403, "nor does a key help"


def test_access_log_line(fresh: Balancer, engine: MakeEngine) -> None:
    fresh.put(table(engine("n1", usage=USAGE, service_time=0.3, peer={"slots": 1})))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(fresh.chat) for _ in range(2)]
        ids = [answer.result().headers["x-request-id"] for answer in asked]
    lines: list[dict[str, Any]] = sorted((fresh.logged(i) for i in ids), key=lambda line: line["waited"] or 0)
    for line in lines:
        assert (line["key"], line["model"], line["peer"], line["status"]) == ("tester", "m", "n1", 200)
        assert (line["prompt_tokens"], line["completion_tokens"], line["cached_tokens"]) == (20, 7, 16)
    assert lines[0]["waited"] is None or lines[0]["waited"] < 0.1
    assert 0.1 < lines[1]["waited"] < 0.6
    lists = fresh.logged(fresh.ask("GET", "/v1/models").headers["x-request-id"])
    assert lists["waited"] is None
    assert lists["prompt_tokens"] is None
    assert lists["affinity"] == ""
