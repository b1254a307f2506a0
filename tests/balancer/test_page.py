# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live page /cluster in a real Chromium. Pictures of it are kept in .build/screenshots."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import shutil
import time
from collections.abc import Iterator

import pytest
from balancer.browser import Browser, Page
from balancer.harness import ROOT, Balancer, MakeBalancer, MakeEngine, table, wait_for

PICTURES = ROOT / ".build" / "screenshots"
USAGE = {"prompt_tokens": 900, "completion_tokens": 40, "prompt_tokens_details": {"cached_tokens": 700}}
HOSTILE = "<img src=x onerror=alert(1)>"

pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium (tests/prepare test, on Debian)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    one = Browser()
    yield one
    one.close()


def state_of(page: Page, peer: str) -> str:
    """What the row of a peer says in its second column."""
    text: str = page.run(f"document.querySelector('tr[data-peer=\"{peer}\"] td')?.innerText || ''")
    return " ".join(text.split())


def load(balancer: Balancer, page: Page) -> None:
    page.open(f"http://127.0.0.1:{balancer.port}/cluster")
    wait_for(lambda: "Nodes serving" in page.text(), 5, "the page shows something")


def test_shows_the_fleet_as_it_is_now(own_balancer: MakeBalancer, engine: MakeEngine, browser: Browser) -> None:
    balancer = own_balancer()
    one = engine("alpha", models=["m", "gemma-3-270m"], usage=USAGE, tokens=40, gap=0.1)
    two = engine("beta", usage=USAGE, tokens=40, gap=0.1, peer={"slots": 40})
    three = engine("gamma/m", models=["m", HOSTILE], peer={"node": "gamma", "backup": True})
    balancer.put(table(one, two, three))
    page = browser.page(1280, 800)
    load(balancer, page)
    wait_for(lambda: state_of(page, "alpha") == "● up", 3, "alpha is up")
    assert "3 of 3" in page.text()
    assert HOSTILE in page.text(), "names are text, not markup"
    assert page.run("document.images.length") == 0

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(balancer.chat, stream=True) for _ in range(10)]
        wait_for(lambda: "10 of 48" in page.text(), 3, "slots in use")
        # A node is drained, another one dies: the page says so within 3 seconds, and why.
        balancer.admin("POST", "/peers/gamma/drain", {"owner": "operator", "reason": "more memory"})
        two.stop()
        began = time.monotonic()
        wait_for(lambda: "down" in state_of(page, "beta"), 3, "beta is down")
        wait_for(lambda: "drained" in state_of(page, "gamma/m"), 3, "gamma is drained")
        assert time.monotonic() - began < 3
        assert re.fullmatch(r"✕ down connection refused, for \d+ s", state_of(page, "beta"))
        assert "by operator: more memory" in state_of(page, "gamma/m")
        assert "1 down, 1 drained" in page.text()
        wait_for(lambda: re.search(r"out\s*beta: connection refused", page.text()), 3, "the event is listed")
        page.screenshot(PICTURES / "cluster-desktop.png")
        for answer in asked:
            with contextlib.suppress(Exception):  # beta's streams broke
                answer.result()
    for _ in range(5):
        assert balancer.chat().status == 200
    wait_for(lambda: float(page.run("document.querySelector('#charts b').innerText")) > 4, 5, "requests are counted")
    labels = page.run("[...document.querySelectorAll('#charts svg')].map((svg) => svg.getAttribute('aria-label'))")
    assert [label.split(",")[0] for label in labels] == [
        "Requests per minute",
        "Mean latency",
        "Time-outs",
        "Waiting requests",
    ]
    assert page.run("document.querySelectorAll('#charts svg path.line').length") >= 2
    wait_for(lambda: "78 % of prompt tokens cached" in page.text(), 3, "the share of cached tokens")

    two.start()
    wait_for(lambda: "down" not in state_of(page, "beta"), 5, "beta is back")
    assert page.complaints() == []
    assert {address.split("?")[0] for address in page.asked() if not address.startswith("data:")} == {
        f"http://127.0.0.1:{balancer.port}/cluster",
        f"http://127.0.0.1:{balancer.port}/cluster/state",
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_readable_on_a_phone(own_balancer: MakeBalancer, engine: MakeEngine, browser: Browser, dark: bool) -> None:
    balancer = own_balancer()
    long = "a-model-with-a-very-long-name/that-says-everything-about-it:70b-instruct-q4_K_M"
    gone = engine("a-node-with-a-rather-long-name.rack-12.example", models=["m", long], peer={"slots": 64})
    balancer.put(table(gone, engine("n2", peer={"slots": 32}), engine("n3", models=["m", "small"])))
    gone.stop()
    reason = "the machine room is being rewired, see the plan on the wall, back on Thursday at the latest"
    balancer.admin("POST", "/peers/n2/drain", {"owner": "operator", "reason": reason})
    balancer.chat()
    page = browser.page(360, 740, dark)
    load(balancer, page)
    wait_for(lambda: "down" in state_of(page, gone.name), 3, "the dead node")
    assert page.run("innerWidth") == 360
    assert page.run("document.documentElement.scrollWidth") == 360, "nothing sticks out"
    outside = page.run(
        "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 361"
        " && !e.closest('thead')).map((e) => e.tagName)"
    )
    assert outside == []
    small = page.run(
        "[...document.querySelectorAll('main *')].filter((e) => e.childNodes.length && e.innerText?.trim()"
        " && parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    assert small == 0, "no text below 12 pixels"
    page.screenshot(PICTURES / f"cluster-phone-{'dark' if dark else 'light'}.png")
    assert page.complaints() == []


def contrast(one: list[float], two: list[float]) -> float:
    """WCAG's contrast ratio of two RGB colours."""

    def luminance(colour: list[float]) -> float:
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(own_balancer: MakeBalancer, engine: MakeEngine, browser: Browser, dark: bool) -> None:
    balancer = own_balancer()
    down, drained = engine("down"), engine("drained")
    balancer.put(table(down, drained, engine("up")))
    down.stop()
    balancer.admin("POST", "/peers/drained/drain", {"owner": "operator"})
    page = browser.page(1280, 800, dark)
    load(balancer, page)
    wait_for(lambda: "down" in state_of(page, "down"), 3, "the dead node")
    pairs = page.run(
        """[...document.querySelectorAll('body *')].filter((e) => e.offsetParent && [...e.childNodes].some(
            (n) => n.nodeType === 3 && n.data.trim())).map((e) => {
          let under = e;
          const colour = (text) => text.match(/[\\d.]+/g).map(Number);
          while (under && colour(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement;
          const ground = getComputedStyle(under || document.body).backgroundColor;
          return [e.innerText, colour(getComputedStyle(e).color), colour(ground)];
        })"""
    )
    assert len(pairs) > 30
    for text, front, ground in pairs:
        assert contrast(front[:3], ground[:3]) >= 4.5, (text, front, ground)


def test_says_when_the_balancer_is_silent(own_balancer: MakeBalancer, engine: MakeEngine, browser: Browser) -> None:
    balancer = own_balancer()
    balancer.put(table(engine("n1")))
    page = browser.page(1280, 800)
    load(balancer, page)
    assert not page.run("document.querySelector('#silent').checkVisibility()")
    balancer.stop()
    wait_for(lambda: "The balancer has not answered for" in page.text(), 8, "the page says that it is not live")
    assert page.run("document.body.classList.contains('stale')")
    assert re.search(r"What is shown below is from \d\d:\d\d:\d\d", page.text())
    page.screenshot(PICTURES / "cluster-silent.png")
    balancer.start()
    wait_for(lambda: "has not answered" not in page.text(), 8, "the page is live again")
    assert page.run("document.querySelector('#live').innerText").startswith("live")


def test_policy_allows_nothing_foreign(own_balancer: MakeBalancer, engine: MakeEngine, browser: Browser) -> None:
    balancer = own_balancer()
    balancer.put(table(engine("n1")))
    first, second = (balancer.ask("GET", "/cluster", key=None) for _ in range(2))
    policies = [answer.headers["content-security-policy"] for answer in (first, second)]
    assert policies[0] != policies[1], "the nonce is used once"
    assert "default-src 'none'" in policies[0]
    assert "unsafe" not in policies[0]
    assert "NONCE" not in first.body.decode()
    assert not re.search(r"https?://(?!www\.w3\.org/)", first.body.decode()), "no external asset"
    page = browser.page(1280, 800)
    load(balancer, page)
    page.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hurt=1\"><p style=\"color:red\">')"
    )
    page.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hurt=1'}))")
    wait_for(lambda: len(page.complaints()) >= 3, 3, "Chromium refuses all three")
    assert page.run("window.hurt === undefined")
