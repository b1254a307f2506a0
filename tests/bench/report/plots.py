# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page's plots, as SVG: to be read in black and white, too, so each system has a marker, a dash and a hatch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from bench.measure.timeline import STEP
from bench.point import Row
from bench.report.tables import label, order
from bench.scenarios.overhead import added
from bench.workload.layouts import SAID
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Results = Mapping[str, list[Row]]
# colour, marker, dashes, hatch
STYLES: dict[str, tuple[str, str, Any, str]] = {
    "affinity": ("#000000", "o", "-", ""),
    "least_busy": ("#0072b2", "s", "--", "////"),
    "weighted_round_robin": ("#56b4e9", "D", ":", "...."),
    "haproxy": ("#d55e00", "^", "-.", "\\\\\\\\"),
    "nginx_plain": ("#009e73", "v", (0, (5, 1)), "xxxx"),
    "nginx_engine_queue": ("#66c2a5", "<", (0, (1, 1)), "++"),
    "litellm": ("#cc79a7", "P", (0, (3, 1, 1, 1)), "oo"),
    "litellm_least_busy": ("#e7a9cb", "X", (0, (3, 1, 1, 1, 1, 1)), "--"),
    "sglang_router": ("#e69f00", "*", (0, (8, 2)), "**"),
}
OTHER = ("#777777", ".", "-", "")
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "llm.cluster",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}


def write(results: Results, folder: Path) -> list[Path]:
    """All plots that these results are enough for."""
    made = []
    with mpl.rc_context(SETTINGS):
        for name, figure in drawn(results):
            file = folder / f"{name}.svg"
            # Without the date the same results make the same file.
            figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")
            made.append(file)
    return made


def drawn(results: Results) -> list[tuple[str, Figure]]:
    found = []
    if rows := results.get("overhead"):
        found.append(("overhead", overhead(rows)))
    for layout, said in SAID.items():
        if rows := [r for r in results.get("sweep", []) if r.get("layout") == layout and r.get("cv") == 1]:
            found.append((f"sweep-{layout}", sweep(rows, said)))
    if rows := results.get("multi_turn"):
        found.append(("multi-turn", multi_turn(rows)))
    if rows := results.get("scale_out"):
        found.append(("scale-out", scale_out(rows)))
    if rows := results.get("failover"):
        found.append(("failover", failover(rows)))
    curves = {str(row.get("part")): row for row in results.get("real_engine", []) if row.get("curve")}
    if {"prefill", "decode"} <= curves.keys():
        found.append(("real-engine", real_engine(curves)))
    return found


def systems(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.system for row in order(rows)))


def panels(count: int, width: float = 4.4, height: float = 3.7) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def line(axes: Axes, system: str, points: list[tuple[float, float]]) -> None:
    colour, marker, dashes, _ = STYLES.get(system, OTHER)
    xs, ys = zip(*sorted(points), strict=True)
    axes.plot(xs, ys, color=colour, marker=marker, linestyle=dashes, label=label(system), markersize=5, linewidth=1.3)


def explained(figure: Figure, axes: Axes) -> Figure:
    """With a legend of these axes' lines below, where it hides none."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    return figure


def bars(axes: Axes, names: list[str], values: list[float], text: str) -> None:
    """Lying bars, the first at the top, with their figures."""
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        colour, _, _, hatch = STYLES.get(name, OTHER)
        axes.barh(-place, value, color="white" if hatch else colour, edgecolor=colour, hatch=hatch, height=0.7)
        axes.annotate(text.format(value), (value, -place), xytext=(3, 0), textcoords="offset points", va="center")
    axes.set_yticks([-place for place in range(len(names))], [label(name) for name in names])
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.18)


def overhead(rows: list[Row]) -> Figure:
    figure, (left, right) = panels(2, 4.8, 0.9 + 0.36 * len(systems(rows)))
    by_name = {row.system: row for row in rows}
    names = systems(rows)
    bars(left, names, [max(1e-3, added(by_name[name], "16kB_1", "p50") or 0) for name in names], "{:.2f}")
    bars(right, names, [by_name[name].get("16kB_32_per_s") for name in names], "{:,.0f}")
    for axes in (left, right):
        axes.set_xscale("log")
    left.set_xlabel("added latency p50, ms (16 kB, 1 connection)")
    right.set_xlabel("requests per second (16 kB, 32 connections)")
    right.set_yticklabels([])
    return figure


def sweep(rows: list[Row], said: str) -> Figure:
    figure, (left, right) = panels(2)
    for name in systems(rows):
        mine = [row for row in rows if row.system == name]
        waits = [(row.get("load"), row.get("wait_p99_s")) for row in mine if row.get("wait_p99_s")]
        if waits:
            line(left, name, waits)
        line(right, name, [(row.get("load"), row.get("answered_per_s")) for row in mine])
    best = [(r.get("load"), r.get("ideal_p99_s")) for r in rows if r.system == "affinity" and r.get("ideal_p99_s")]
    if best:
        xs, ys = zip(*sorted(best), strict=True)
        left.plot(xs, ys, color="#999999", linewidth=4, alpha=0.5, zorder=0, label="ideal queue")
    left.set_yscale("log")
    left.set_ylabel("wait for a slot p99, s")
    right.set_ylabel("answers per second")
    for axes in (left, right):
        axes.set_xlabel("load, part of the capacity")
    figure.suptitle(said, fontsize=9)
    return explained(figure, left)


def multi_turn(rows: list[Row]) -> Figure:
    loads = sorted({row.get("load") for row in rows})
    shown = [row for row in rows if row.get("load") == (0.65 if 0.65 in loads else loads[0])]
    names, by_name = systems(shown), {row.system: row for row in shown}
    figure, (left, right) = panels(2, 4.8, 0.9 + 0.36 * len(names))
    bars(left, names, [by_name[name].get("ttft_mean_s") for name in names], "{:.3f}")
    bars(right, names, [by_name[name].get("ttft_p95_s") for name in names], "{:.3f}")
    left.set_xlabel("time to first token, mean, s")
    right.set_xlabel("time to first token, p95, s")
    right.set_yticklabels([])
    return figure


def scale_out(rows: list[Row]) -> Figure:
    works = list(dict.fromkeys(row.get("work") for row in rows))
    figure, axes = panels(len(works))
    for here, work in zip(axes, works, strict=True):
        some = [row for row in rows if row.get("work") == work]
        for name in systems(some):
            line(here, name, [(r.get("nodes"), r.get("answered_per_s")) for r in some if r.system == name])
        counts = sorted({row.get("nodes") for row in some})
        one = [r.get("answered_per_s") for r in some if r.system == "affinity" and r.get("nodes") == counts[0]]
        if one:
            ideal = [one[0] * count / counts[0] for count in counts]
            here.plot(counts, ideal, color="#999999", linewidth=4, alpha=0.5, zorder=0, label="as many times one")
        here.set_title(str(work), fontsize=9)
        here.set_xlabel("nodes")
        here.set_ylabel("answers per second")
    return explained(figure, axes[0])


def failover(rows: list[Row]) -> Figure:
    """The first round: answers as steps, failures below the line."""
    first = {row.system: row for row in order([row for row in rows if row.get("round") == 0])}
    figure = Figure(figsize=(7.5, 1.1 * len(first) + 0.9), layout="constrained")
    all_axes = figure.subplots(len(first), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, row) in zip(all_axes, first.items(), strict=True):
        steps = json.loads(row.get("timeline"))[: int((row.get("seconds") + 3) / STEP)]
        at = [STEP * i for i in range(len(steps))]
        axes.bar(at, [s[0] for s in steps], STEP, align="edge", color="#bbbbbb", edgecolor="#888888", label="answered")
        failed = [-s[1] for s in steps]
        cut = [-s[2] for s in steps]
        axes.bar(at, failed, STEP, align="edge", color="black", label="failed, not begun")
        axes.bar(
            at, cut, STEP, failed, align="edge", color="white", edgecolor="black", hatch="////", label="stream cut"
        )
        axes.axvline(row.get("dies"), color="black", linestyle="--", linewidth=1)
        axes.axvline(row.get("back"), color="black", linestyle=":", linewidth=1)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_title(label(name), fontsize=9, loc="left")
        axes.set_ylabel(f"per {STEP} s")
    row, above = next(iter(first.values())), all_axes[0].get_xaxis_transform()
    for name, text in (("dies", "dies"), ("back", "is back")):
        all_axes[0].text(row.get(name), 1.03, text, transform=above, ha="center", fontsize=8)
    all_axes[-1].set_xlabel("seconds")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    return figure


def real_engine(curves: Mapping[str, Row]) -> Figure:
    """The simulated engine beside the real one; by part of the work."""
    figure, (left, right) = panels(2)
    for axes, part, x, y, across, up in (
        (left, "prefill", "tokens", "ms", "tokens of the prompt", "time to first token, ms"),
        (right, "decode", "streams", "tokens_per_s", "streams at once", "tokens per second of each stream"),
    ):
        points = json.loads(str(curves[part].get("curve")))
        xs = [point[x] for point in points]
        axes.plot(xs, [point[f"real_{y}"] for point in points], color="black", marker="o", label="llama.cpp")
        simulated = [point[f"simulated_{y}"] for point in points]
        axes.plot(xs, simulated, color="#d55e00", marker="^", linestyle="--", label="simulated")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.set_ylim(bottom=0)
    right.set_xticks(xs)
    return explained(figure, left)
