# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page's plots, as SVG: to be read in black and white, too, so each system has a marker, a dash and a hatch.

Points are medians of their rounds, with the range of these beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from bench.measure import central
from bench.measure.answers import OBJECTIVE
from bench.measure.timeline import STEP
from bench.point import Row
from bench.report.failures import failures
from bench.report.rounds import merged, rounds, spread_of
from bench.report.tables import label, order, say
from bench.scenarios.overhead import added
from bench.workload.layouts import SAID
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

Results = Mapping[str, list[Row]]
# colour, marker, dashes, hatch
STYLES: dict[str, tuple[str, str, Any, str]] = {
    "affinity": ("#000000", "o", "-", ""),
    "least_busy": ("#0072b2", "s", "--", "////"),
    "weighted_round_robin": ("#56b4e9", "D", ":", "...."),
    "haproxy": ("#d55e00", "^", "-.", "\\\\\\\\"),
    "haproxy_hash": ("#8c2d04", ">", (0, (4, 1, 1, 1)), "\\\\.."),
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


def measured(  # noqa: PLR0917 what to draw, and where
    axes: Axes, system: str, rows: Sequence[Row], x: str, y: str, of_answered: bool = False
) -> None:
    """A line through the medians of the rounds, with their ranges. rows: of this system.

    of_answered: the figure is of those that were answered. Where others failed it is no better for that: such points
    are hollow, and no line leads there.
    """
    colour, marker, _, _ = STYLES.get(system, OTHER)
    whole: list[tuple[float, float]] = []
    broken: list[tuple[float, float]] = []
    for group in rounds(rows):
        if spread := spread_of(group, y):
            place = group[0].get(x)
            (broken if of_answered and any(map(failures, group)) else whole).append((place, spread[0]))
            axes.vlines(place, spread[1], spread[2], color=colour, linewidth=0.8)
    if whole:
        line(axes, system, whole)
    if broken:
        name = label(system) + ": requests failed"
        axes.plot(
            *zip(*broken, strict=True), color=colour, marker=marker, markerfacecolor="white", linestyle="", label=name
        )


def plain_log(axis: Axis, subs: Sequence[float]) -> None:
    """A logarithmic axis with numbers as people write them. subs: which of each power of ten are marked."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.minorticks_off()


def grey(axes: Axes, name: str, points: Mapping[float, float]) -> None:
    """What was asked for, or what is simulated: no system's."""
    if points:
        xs, ys = zip(*sorted(points.items()), strict=True)
        axes.plot(xs, ys, color="#999999", linewidth=4, alpha=0.5, zorder=0, label=name)


def explained(figure: Figure, *axes: Axes) -> Figure:
    """With a legend of these axes' lines below, where it hides none."""
    shown = {name: handle for each in axes for handle, name in zip(*each.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, fontsize=7)
    return figure


def lying(axes: Axes, names: Sequence[str]) -> None:
    """A line of its own for each system, the first at the top."""
    axes.set_yticks([-place for place in range(len(names))], list(names))
    axes.set_ylim(-len(names) + 0.4, 0.6)


def bars(axes: Axes, groups: Sequence[Sequence[Row]], name: str, text: str) -> None:
    """Lying bars from nought, with the medians of their rounds and the ranges of these. groups: rounds by system."""
    for place, group in enumerate(groups):
        colour, _, _, hatch = STYLES.get(group[0].system, OTHER)
        middle, least, most = spread_of(group, name) or (0.0, 0.0, 0.0)
        axes.barh(-place, middle, color="white" if hatch else colour, edgecolor=colour, hatch=hatch, height=0.7)
        if most > least:
            axes.hlines(-place, least, most, color="black", linewidth=1)
            axes.plot([least, most], [-place, -place], color="black", marker="|", linestyle="", markersize=8)
        said = text.format(middle)
        if count := sum(map(failures, group)):
            said += f" ({count:.0f} of {sum(row.get('requests') for row in group):,} failed)"
        axes.annotate(said, (most, -place), xytext=(4, 0), textcoords="offset points", va="center")
    lying(axes, [label(group[0].system) for group in groups])
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.25)


def dots(axes: Axes, names: Sequence[str], values: Sequence[float | None]) -> None:
    """Points on a logarithmic axis, which has no nought for a bar to begin at; what it cannot show is said."""
    axes.set_xscale("log")
    seen = [value for value in values if value and value > 0]
    plain_log(axes.xaxis, [1] if seen and max(seen) > 100 * min(seen) else [1, 2, 5])
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        colour, marker, _, _ = STYLES.get(name, OTHER)
        if value is None or value <= 0:
            said = "not measured" if value is None else say(value)
            axes.annotate(said, (0.02, -place), xycoords=axes.get_yaxis_transform(), va="center")
            continue
        axes.plot([value], [-place], color=colour, marker=marker, linestyle="", markersize=7)
        axes.annotate(say(value), (value, -place), xytext=(6, 0), textcoords="offset points", va="center")
    lying(axes, [label(name) for name in names])
    axes.margins(x=0.25)


def overhead(rows: list[Row]) -> Figure:
    figure, (left, right) = panels(2, 4.8, 0.9 + 0.36 * len(systems(rows)))
    by_name = {row.system: row for row in rows}
    names = systems(rows)
    dots(left, names, [added(by_name[name], "16kB_1", "p50") for name in names])
    dots(right, names, [by_name[name].get("16kB_32_per_s") for name in names])
    left.set_xlabel("added latency p50, ms (16 kB, 1 connection)")
    right.set_xlabel("requests per second (16 kB, 32 connections)")
    right.set_yticklabels([])
    return figure


def sweep(rows: list[Row], said: str) -> Figure:
    figure, (left, middle, right) = panels(3, 3.6)
    for name in systems(rows):
        mine = [row for row in rows if row.system == name]
        # A logarithmic axis has no place for those that did not wait.
        measured(left, name, [row for row in mine if row.get("wait_p99_s")], "load", "wait_p99_s", True)
        measured(middle, name, mine, "load", "answered_per_s")
        measured(right, name, mine, "load", "goodput_per_s")
    ours = [row for row in merged(rows) if row.system == "affinity"]
    grey(left, central.NAME, {row.get("load"): row.get("ideal_p99_s") for row in ours if row.get("ideal_p99_s")})
    asked = {r.get("load"): r.get("requests") / r.get("rounds") / r.get("seconds") for r in ours if r.get("requests")}
    for axes in (middle, right):
        grey(axes, "what was asked for", asked)
    left.set_yscale("log")
    plain_log(left.yaxis, [1, 2, 5])
    left.set_ylabel("wait for a slot p99, s")
    middle.set_ylabel("answers per second")
    right.set_ylabel(f"good answers per second\n(first token within {OBJECTIVE.first:g} s)")
    for axes in (left, middle, right):
        axes.set_xlabel("load, part of the capacity")
        axes.set_xticks(sorted({row.get("load") for row in rows}))
    figure.suptitle(said, fontsize=9)
    return explained(figure, left, middle, right)


def multi_turn(rows: list[Row]) -> Figure:
    rows = [row for row in rows if row.get("cache") in {None, "shared"}]
    loads = sorted({row.get("load") for row in rows})
    shown = [row for row in rows if row.get("load") == (0.65 if 0.65 in loads else loads[0])]
    groups = rounds(order(shown))
    figure, (left, right) = panels(2, 4.8, 1.1 + 0.36 * len(groups))
    bars(left, groups, "ttft_mean_s", "{:.3f}")
    bars(right, groups, "ttft_p95_s", "{:.3f}")
    figure.suptitle(f"chats of many turns at load {shown[0].get('load'):g}", fontsize=9)
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
            measured(here, name, [row for row in some if row.system == name], "nodes", "answered_per_s")
        counts = sorted({row.get("nodes") for row in some})
        one = [r.get("answered_per_s") for r in some if r.system == "affinity" and r.get("nodes") == counts[0]]
        if one:
            grey(here, "as many times one", {count: one[0] * count / counts[0] for count in counts})
        here.set_title(str(work), fontsize=9)
        here.set_xlabel("nodes")
        here.set_ylabel("answers per second")
    return explained(figure, *axes)


def failover(rows: list[Row]) -> Figure:
    """The first round: answers as steps, failures below the line."""
    first = {row.system: row for row in order([row for row in rows if not row.get("round")])}
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
        axes.set_ylabel(f"requests\nper {STEP} s", fontsize=8)
        # Below the line are failures, not negative requests.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
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
