"""Heat maps, UpSet plots and diagrams of overlaps: what stands in them, worked out by hand."""

from __future__ import annotations

import doctest
import itertools
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import circuitdb
from circuitdb.cli import run
from circuitdb.compare.comparable import Aspects
from circuitdb.compare.groups import Between, Group
from circuitdb.compare.matrix import CLUSTERED, Chance, Placed
from circuitdb.compare.permanova import Fit, Term
from circuitdb.compare.regions import regions
from circuitdb.compare.variance import Variance
from circuitdb.errors import RenderError, UnknownNameError
from circuitdb.overlaps import IN_NOTEBOOK, StoredGroupMatrix, StoredMatrix
from circuitdb.render import heatmap, upset, variance
from tests.stored import IOI, MONTHS

IOI_REF = "ioi,engine=eap"
FOUR = (IOI_REF, "months", "months,answers=random", "ioi,engine=random")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def path(stored_path: Path, tmp_path: Path) -> Path:
    """A database of one's own: what is compared is kept in it."""
    return Path(shutil.copy(stored_path, tmp_path / "own.duckdb"))


def ids(*members: int) -> np.ndarray:
    return np.asarray(members, np.int32)


def a_matrix(
    labels: Sequence[str], jaccard: np.ndarray, q: np.ndarray | None = None, **changes: Any
) -> StoredMatrix:
    """A matrix with the given indices and q-values; the task of a circuit is its label's first word."""
    n = len(labels)
    circuits = [
        Aspects(f"{i:064}", label, label.split()[0], "eap", 1, "logit_diff", "resample", None, "edge", "noising")
        for i, label in enumerate(labels)
    ]  # fmt: skip
    square = np.asarray(jaccard, np.float32)
    chance = None
    if q is not None:
        chance = Chance(np.full((n, n), 0.25), 10 * (square.astype(float) - 0.25), q / 2, q)
    sizes = np.arange(10, 10 + n, dtype=np.int32)
    return StoredMatrix(**({
        "level": "edges", "circuits": tuple(circuits), "sizes": sizes, "jaccard": square,
        "chance": chance, "placed": None,
    } | changes))  # fmt: skip


def symmetric(n: int, values: dict[tuple[int, int], float], other: float, own: float) -> np.ndarray:
    found = np.full((n, n), other)
    for (i, j), value in values.items():
        found[i, j] = found[j, i] = value
    np.fill_diagonal(found, own)
    return found


def four() -> StoredMatrix:
    """Circuits 0 and 2, and 1 and 3, go together; only the first two do so beyond chance."""
    pairs = {(0, 2): 0.8, (1, 3): 0.5}
    return a_matrix(
        ["ioi a", "months a", "ioi b", "months b"],
        symmetric(4, pairs, 0.1, 1.0),
        symmetric(4, {(0, 2): 0.05, (1, 3): 0.051}, 0.9, np.nan),
    )


def crowd(n: int, n_tasks: int = 5, chance: bool = True) -> StoredMatrix:
    """Task after task in turns: 0.4 within a task and significant there, 0.1 between tasks."""
    task = np.arange(n) % n_tasks
    same = task[:, None] == task[None, :]
    jaccard = np.where(same, 0.4, 0.1)
    np.fill_diagonal(jaccard, 1.0)
    q = np.where(same, 0.001, 0.9)
    np.fill_diagonal(q, np.nan)
    labels = [f"task{t} number {i}" for i, t in enumerate(task)]
    return a_matrix(labels, jaccard, q if chance else None)


def axes_of(figure: Any, name: str) -> Any:
    (found,) = [a for a in figure.axes if a.get_gid() == name]
    return found


def marks(figure: Any) -> set[tuple[int, int]]:
    """Rows and columns of the cells that are marked as significant."""
    (dots,) = [c for c in axes_of(figure, "cells").collections if c.get_gid() == "significant"]
    return {(round(y), round(x)) for x, y in dots.get_offsets().tolist()}


def cells(figure: Any) -> np.ndarray:
    """The values drawn, NaN where a cell has none."""
    (image,) = axes_of(figure, "cells").images
    return np.ma.filled(image.get_array(), np.nan)


def words(svg: str) -> list[str]:
    return ["".join(t.itertext()) for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_regions_worked_out_by_hand() -> None:
    found = regions([ids(1, 2, 3, 9), ids(2, 3, 4), ids(3, 5, 6, 9)])
    assert [(r.holders, r.members.tolist()) for r in found] == [
        ((2,), [5, 6]), ((0,), [1]), ((1,), [4]), ((0, 1), [2]), ((0, 2), [9]), ((0, 1, 2), [3]),
    ]  # fmt: skip
    assert regions([ids(), ids()]) == ()
    assert [(r.holders, r.members.tolist()) for r in regions([ids(4), ids(4)])] == [((0, 1), [4])]


def test_regions_are_those_of_set_arithmetic() -> None:
    rng = np.random.default_rng(0)
    sets = [np.flatnonzero(rng.random(200) < p).astype(np.int32) for p in (0.5, 0.3, 0.1, 0.6)]
    expected = {}
    for k in range(1, 5):
        for holders in itertools.combinations(range(4), k):
            inside = set.intersection(*(set(sets[i].tolist()) for i in holders))
            outside = {x for i in range(4) if i not in holders for x in sets[i].tolist()}
            if inside - outside:
                expected[holders] = sorted(inside - outside)
    found = regions(sets)
    assert {r.holders: r.members.tolist() for r in found} == expected
    assert [len(r.members) for r in found] == sorted(map(len, expected.values()), reverse=True)


def test_overlap_says_who_holds_what(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["overlap", IOI_REF, "months", "--db", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (ioi, months) = (c["circuit_id"] for c in document["circuits"])
    assert {tuple(r["circuits"]): (r["n"], set(r["members"])) for r in document["regions"]} == {
        (ioi, months): (3, {*IOI} & {*MONTHS}),
        (ioi,): (2, {*IOI} - {*MONTHS}),
        (months,): (1, {*MONTHS} - {*IOI}),
    }
    assert run(["overlap", *FOUR, "--force", "--db", str(path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"edges held by just these \(5 of 5 intersections\)", said)
    # m0->logits is in months and in its random-answer control.
    assert re.search(r"^months eap, months eap random answers +1$", said, re.MULTILINE)


def test_a_heat_map_stands_in_the_order_of_the_dendrogram_and_marks_what_is_significant() -> None:
    found = four()
    figure = heatmap.figure(found)
    order = found.order().tolist()
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset((0, 2)), frozenset((1, 3))}
    shown = [t.get_text() for t in axes_of(figure, "cells").get_yticklabels()]
    assert shown == [f"{k}  {found.labels[i]}" for k, i in enumerate(order, 1)]
    # The pair of .051 is not marked.
    at = {i: row for row, i in enumerate(order)}
    assert marks(figure) == {(at[0], at[2]), (at[2], at[0])}
    expected = found.jaccard[np.ix_(order, order)].astype(float)
    np.fill_diagonal(expected, np.nan)
    assert cells(figure) == pytest.approx(expected, nan_ok=True)


def test_the_leaves_of_the_dendrogram_are_at_their_rows_and_join_at_their_distance() -> None:
    figure = heatmap.figure(four())
    (lines,) = axes_of(figure, "dendrogram").collections
    joins = [tuple(map(tuple, np.round(s, 6).tolist())) for s in lines.get_segments()]
    # 0 and 2 join at 1 − .8, 1 and 3 at 1 − .5, all at the mean of four times 1 − .1.
    assert sorted(join[1][0] for join in joins) == pytest.approx([0.2, 0.5, 0.9])
    leaves = sorted(y for join in joins for x, y in (join[0], join[3]) if x == 0)
    assert leaves == [0, 1, 2, 3]


def test_a_small_heat_map_has_its_figures_and_says_how_it_is_read() -> None:
    said = words(four()._repr_svg_() or "")
    assert [said.count(text) for text in ("0.80", "0.50", "0.10")] == [2, 2, 8]
    assert {"10", "11", "12", "13"} <= set(said)  # sizes, on the diagonal
    told = " ".join(said)
    assert "Jaccard index: edges of 4 circuits" in told
    assert "• more than by chance, q ≤ 0.05 over all 6 pairs (Benjamini–Hochberg)" in told
    plain = " ".join(words(crowd(4, chance=False)._repr_svg_() or ""))
    assert "Not compared with chance" in plain
    nothing = a_matrix(["a", "b"], symmetric(2, {}, 0.5, 1.0), symmetric(2, {}, 0.4, np.nan))
    told = " ".join(words(nothing._repr_svg_() or ""))
    assert "No pair shares more than by chance, q ≤ 0.05 over all 1 pair (" in told


def of_groups(q: np.ndarray | None = None, differ_q: float = np.nan) -> StoredGroupMatrix:
    """Three groups, the last of one circuit; chance gives a quarter where q-values are given."""
    jaccard = symmetric(3, {(0, 1): 0.2, (0, 2): 0.1, (1, 2): 0.6}, 0.0, 0.8)
    jaccard[2, 2] = np.nan
    nothing = np.full((3, 3), np.nan)
    differ = symmetric(3, {(0, 1): differ_q}, np.nan, np.nan)
    between = Between(
        np.ones((3, 3)), jaccard, nothing, nothing,
        nothing if q is None else np.full((3, 3), 0.25), nothing, nothing if q is None else q, nothing,
        differ,
    )  # fmt: skip
    groups = tuple(Group(name, ("x",)) for name in ("ioi", "months", "numerals"))
    return StoredGroupMatrix("edges", ("task",), groups, between, ("few circuits",))


def test_a_heat_map_of_groups_has_the_means_and_the_marks_of_the_table() -> None:
    q = symmetric(3, {(1, 2): 0.05, (0, 1): 0.051}, 0.9, 0.01)
    found = of_groups(q, differ_q=0.04)
    figure = heatmap.of_groups(found)
    assert cells(figure) == pytest.approx(found.between.jaccard, nan_ok=True)
    assert marks(figure) == {(0, 0), (1, 1), (2, 2), (1, 2), (2, 1)}
    axes = axes_of(figure, "cells")
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1  ioi", "2  months", "3  numerals"]
    apart = {
        (round(y), round(x))
        for x, y in (t.get_position() for t in axes.texts if t.get_text() == "≠")
    }
    assert apart == {(0, 1), (1, 0)}
    said = words(found._repr_svg_() or "")
    assert [said.count(text) for text in ("0.80", "0.20", "0.10", "0.60")] == [2, 2, 2, 2]
    told = " ".join(said)
    assert "•: they share more than by chance, q ≤ 0.05 over all cells" in told
    assert "few circuits" in told
    assert cells(heatmap.of_groups(found, "excess"))[0, 1] == pytest.approx(-0.05)


def test_a_heat_map_of_groups_says_what_it_has_not() -> None:
    told = " ".join(words(of_groups()._repr_svg_() or ""))
    assert "more than by chance" not in told
    assert "No groups share less across than within" in told
    told = " ".join(words(of_groups(np.ones((3, 3)))._repr_svg_() or ""))
    assert "No cell shares more than by chance" in told
    with pytest.raises(RenderError, match=r"excess cannot be shown: .* not compared with chance"):
        heatmap.of_groups(of_groups(), "excess")
    with pytest.raises(
        RenderError, match="z is of circuits and not of groups, which show jaccard, exp"
    ):
        heatmap.check_groups("z")
    with pytest.raises(UnknownNameError, match=r"unknown figure 'zz'.*corrected"):
        heatmap.check_groups("zz")
    with pytest.raises(RenderError, match="a heat map of groups shows up to 60, not 61"):
        heatmap.check_groups("jaccard", 61)


def test_up_to_sixty_circuits_have_labels_and_marks_and_a_strip_of_their_tasks() -> None:
    found = crowd(30)
    figure = heatmap.figure(found)
    order = found.order().tolist()
    shown = [t.get_text() for t in axes_of(figure, "cells").get_yticklabels()]
    assert shown == [f"{k}  {found.labels[i]}" for k, i in enumerate(order, 1)]
    # Six circuits a task: 30 ordered pairs within each of five.
    assert len(marks(figure)) == 5 * 6 * 5
    assert len(axes_of(figure, "tasks").patches) == 5
    assert "0.40" not in [t.get_text() for t in axes_of(figure, "cells").texts]


def test_of_more_circuits_tasks_are_labelled_and_significance_has_its_own_half() -> None:
    figure = heatmap.figure(crowd(300))
    shown = {t.get_text() for t in axes_of(figure, "cells").get_yticklabels()}
    assert shown == {f"task{k}" for k in range(5)}
    values = cells(figure)
    above, below = np.triu_indices(300, 1), np.tril_indices(300, -1)
    assert np.isfinite(values[above]).all()
    drawn = values[below][np.isfinite(values[below])]
    assert len(drawn) == 5 * 60 * 59 // 2
    assert drawn == pytest.approx(0.4)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [f"task{k}" for k in range(5)]


def test_tasks_beyond_the_colours_are_grey_and_counted() -> None:
    figure = heatmap.figure(crowd(70, n_tasks=14))
    (legend,) = figure.legends
    assert legend.get_texts()[-1].get_text() == "others (4)"


def test_what_can_be_negative_has_a_scale_that_parts_at_zero() -> None:
    found = four()
    scales = {}
    for show in ("jaccard", "expected", "excess", "z"):
        (image,) = axes_of(heatmap.figure(found, show), "cells").images
        scales[show] = (image.norm.vmin, image.norm.vmax)
    # The greatest excess is .8 − .25 = .55 and the greatest z ten times that.
    assert scales == {
        "jaccard": (0, 1), "expected": (0, 1), "excess": (-0.6, 0.6), "z": (-6, 6),
    }  # fmt: skip
    values = cells(heatmap.figure(found, "excess"))
    assert np.nanmax(values) == pytest.approx(0.55)
    assert np.nanmin(values) == pytest.approx(-0.15)


def test_a_corrected_overlap_far_beyond_its_controls_does_not_take_the_colour_of_the_others() -> (
    None
):
    corrected = symmetric(4, {(0, 1): 40.0, (2, 3): np.nan}, 0.5, np.nan)
    placed = Placed(corrected * 0, corrected * 0 + 1, corrected, corrected, corrected)
    figure = heatmap.figure(a_matrix(list("abcd"), np.eye(4) + 0.1, placed=placed), "corrected")
    (image,) = axes_of(figure, "cells").images
    assert (image.norm.vmin, image.norm.vmax) == (-2, 2)
    assert image.colorbar.extend == "both"
    assert np.isnan(cells(figure)).sum() == 4 + 2


def test_pictures_are_equal_byte_for_byte_with_text_as_text_and_no_dates(tmp_path: Path) -> None:
    for suffix in ("svg", "png", "pdf"):
        first, second = (four().render(tmp_path / f"{k}.{suffix}").read_bytes() for k in "ab")
        assert first == second
    svg = (tmp_path / "a.svg").read_text("utf-8")
    assert "<dc:date>" not in svg
    assert "'DejaVu Sans', Verdana, sans-serif" in svg
    assert b"CreationDate" not in (tmp_path / "a.pdf").read_bytes()


def test_a_name_is_no_formula_and_no_markup(tmp_path: Path) -> None:
    labels = ["$x_1$ <b>", "a & b\x1b[2J", "c"]
    found = a_matrix(labels, symmetric(3, {}, 0.5, 1.0))
    said = " ".join(words(found._repr_svg_() or ""))
    assert "$x_1$ <b>" in said
    assert "a & b [2J" in said


def test_what_a_heat_map_cannot_show_is_said_in_a_line() -> None:
    plain = crowd(4, chance=False)
    for show in ("expected", "excess", "z"):
        with pytest.raises(
            RenderError, match=f"{show} cannot be shown: the matrix was not compared"
        ):
            heatmap.figure(plain, show)
    with pytest.raises(RenderError, match="corrected cannot be shown: no two of these circuits"):
        heatmap.figure(four(), "corrected")
    with pytest.raises(UnknownNameError, match="did you mean 'jaccard'"):
        heatmap.figure(plain, "jacard")
    n = CLUSTERED + 1
    circuits = four().circuits[:1] * n
    many = a_matrix(["a"], np.eye(1), circuits=circuits)
    with pytest.raises(RenderError, match="shows up to 2,000 circuits, not 2,001"):
        heatmap.check_drawable(many, "jaccard")


def test_a_notebook_shows_what_fits_and_only_with_matplotlib(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (four()._repr_svg_() or "").startswith("<svg")
    assert repr(four()) == "<matrix of edges of 4 circuits, compared with chance>"
    large = a_matrix(["a"], np.eye(1), circuits=four().circuits[:1] * (IN_NOTEBOOK + 1))
    assert large._repr_svg_() is None
    monkeypatch.setattr("circuitdb.render.plot.installed", lambda: False)
    assert four()._repr_svg_() is None


def an_upset(sets: Sequence[np.ndarray], labels: Sequence[str]) -> Any:
    return upset.figure(labels, [len(s) for s in sets], regions(sets), "edges")


def test_an_upset_plot_has_a_bar_and_dots_for_every_exclusive_intersection() -> None:
    sets = [ids(1, 2, 3, 4, 9), ids(2, 3, 4, 9), ids(3, 5, 6, 7, 9), ids(8, 9)]
    figure = an_upset(sets, "abcd")
    heights = [round(p.get_height()) for p in axes_of(figure, "intersections").patches]
    # {5 6 7}, {2 4}, {1}, {8}, {3}, {9}
    assert heights == [3, 2, 1, 1, 1, 1]
    columns = [
        [(x, y) for x, y in zip(*line.get_data(), strict=True)]
        for line in axes_of(figure, "memberships").lines
        if (line.get_gid() or "").startswith("column")
    ]
    assert columns == [
        [(0, 2)], [(1, 0), (1, 1)], [(2, 0)], [(3, 3)], [(4, 0), (4, 1), (4, 2)],
        [(5, 0), (5, 1), (5, 2), (5, 3)],
    ]  # fmt: skip
    assert [round(p.get_width()) for p in axes_of(figure, "sizes").patches] == [5, 4, 5, 2]
    told = " ".join(t.get_text() for t in figure.texts)
    assert "9 edges of 4 circuits" in told
    assert "Blue: held by all 4." in told


def test_an_upset_plot_says_what_it_leaves_out() -> None:
    # Circuit k holds k alone and every pair of it: 10 + 45 intersections of one member each.
    pairs = [*itertools.combinations(range(10), 2)]
    sets = [ids(k, *(10 + at for at, pair in enumerate(pairs) if k in pair)) for k in range(10)]
    figure = an_upset(sets, "abcdefghij")
    told = " ".join(" ".join(t.get_text().split()) for t in figure.texts)
    assert len(axes_of(figure, "intersections").patches) == upset.COLUMNS
    assert "No edges are held by all 10." in told
    assert f"The {upset.COLUMNS} largest of 55 intersections" in told
    assert f"have {55 - upset.COLUMNS} edges, 1 at most each" in told
    assert "0 edges of 4 circuits" in an_upset([ids()] * 4, "abcd").texts[0].get_text()


def test_more_than_three_circuits_are_drawn_as_an_upset_plot(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.svg", "b.svg"):
        given = ["--force", "--db", str(path), "--render", str(tmp_path / name)]
        assert run(["overlap", *FOUR, *given]) == 0
    a, b = (tmp_path / name for name in ("a.svg", "b.svg"))
    assert a.read_bytes() == b.read_bytes()
    said = words(a.read_text("utf-8"))
    found = circuitdb.open(path).overlap(*FOUR, force=True)
    assert set(found.labels) <= set(said)
    assert "No edges are held by all 4." in said
    capsys.readouterr()
    given = ["--force", "--db", str(path), "--render", str(tmp_path / "a.dot")]
    assert run(["overlap", *FOUR, *given]) == 2
    assert "end it in .svg, .png, .pdf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("level", "drawn", "counts"),
    [
        # ioi goes through a0.h0, m0 and a1.h1, months through a0.h0 and m0.
        ("nodes", {"a0.h0", "m0", "a1.h1"}, (1, 0, 2)),
        ("heads", {"a0.h0", "a1.h1"}, (1, 0, 1)),
        ("mlps", {"m0"}, (0, 0, 1)),
    ],
)
def test_a_diagram_shows_and_counts_what_its_level_counts(
    path: Path, level: str, drawn: set[str], counts: tuple[int, int, int]
) -> None:
    found = circuitdb.open(path).overlap(IOI_REF, "months", level=level)
    dot = found.dot()
    assert " -> " not in dot
    assert set(re.findall(r'tooltip="([^":]+): (?:ioi|months|both)', dot)) == drawn
    for name, n in zip(("ioi only", "months only", "both"), counts, strict=True):
        assert f"{name}: {n}" in dot
    assert f"Jaccard of {level}" in dot


def test_matrix_draws_and_measures_what_is_to_be_shown(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("circuitdb.api.crowds.CHANCE_BY_ITSELF", 1)
    target = tmp_path / "matrix.svg"
    given = ["matrix", "engine=eap", "--db", str(path), "--render", str(target)]
    assert run([*given, "--show", "excess"]) == 0
    assert f"drawn to {target}" in capsys.readouterr().err
    said = words(target.read_text("utf-8"))
    assert "Jaccard index above chance: edges of 2 circuits" in said
    assert {"1  ioi", "2  months"} <= set(said)
    for options, told in (
        (
            ["--show", "z", "--no-chance"],
            "z cannot be shown: the matrix was not compared with chance",
        ),
        (["--show", "jacard"], "did you mean 'jaccard'"),
    ):
        assert run([*given, *options]) == 2
        err = capsys.readouterr().err
        assert told in err
        assert len(err.splitlines()) == 1
    assert run(["matrix", "engine=eap", "--db", str(path), "--show", "z"]) == 2
    assert "--show says what --render draws" in capsys.readouterr().err
    assert run([*given, "--by", "task", "--show", "excess"]) == 0
    assert "drawn to" in capsys.readouterr().err
    said = words(target.read_text("utf-8"))
    assert "Jaccard index above chance, mean: edges of 2 circuits by task" in said
    assert run([*given, "--by", "task", "--show", "corrected"]) == 2
    assert "corrected is of circuits and not of groups" in capsys.readouterr().err
    assert run([*given[:-1], str(tmp_path / "matrix.dot")]) == 2
    assert "end it in .svg, .png, .pdf" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [["matrix", "engine=eap"], ["overlap", *FOUR, "--force"]])
def test_without_matplotlib_a_picture_is_refused_before_the_work(
    path: Path, tmp_path: Path, asked: list[str],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    target = tmp_path / "a.svg"
    assert run([*asked, "--db", str(path), "--render", str(target)]) == 2
    assert capsys.readouterr().err == (
        "error: plots need matplotlib: run pip install 'circuitdb[plots]', or leave the plot out\n"
    )
    assert not target.exists()


def test_the_examples_of_the_heat_map_hold() -> None:
    assert doctest.testmod(heatmap).attempted
    assert doctest.testmod(heatmap).failed == 0


def a_variance() -> Variance:
    """Two terms: of one the share in order is not the marginal one."""
    terms = [
        Term("task", 3, 2, 6.0, 0.6, 2, 5.0, 0.5, 0.2, 4.5, "residual", 0.001, "within", (), 1e6),
        Term("engine", 2, 1, 1.0, 0.1, 1, 1.0, 0.1, 0.1, None, "residual", None, "within", (), 1e6),
    ]
    fit = Fit(tuple(terms), 4, 3.0, 10.0, ())
    factors = {"task": ("a", "b", "c"), "engine": ("x", "y")}
    return Variance("edges", "jaccard", 8, factors, 6, fit, 999, ("sizes differ",))


def test_a_term_has_both_its_shares_and_the_mark_of_chance(tmp_path: Path) -> None:
    figure = variance.figure(a_variance())
    axes = axes_of(figure, "shares")
    widths = {p.get_gid(): p.get_width() for p in axes.patches}
    assert widths == {
        "marginal-0": 0.5, "in-order-0": 0.6, "marginal-1": 0.1, "in-order-1": 0.1, "residual": 0.3,
    }  # fmt: skip
    marks = {c.get_gid(): c.get_segments()[0][0][0] for c in axes.collections}
    assert marks == {"chance-0": 0.2, "chance-1": 0.1}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["task", "engine", "residual"]
    assert [t.get_text() for t in axes.texts] == ["F 4.5, p 0.001", "F –, p –"]
    assert axes.get_xlim() == (0, 1)
    first, second = (variance.save(a_variance(), tmp_path / f"{k}.svg").read_bytes() for k in "ab")
    assert first == second
    said = " ".join(words(first.decode()))
    assert "What determines 8 circuits: jaccard distance of edges" in said
    assert "sizes differ" in said
