"""The report: the keys that programs rely on, and a page that is whole, harmless and legible."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from vista.config import GateConfig
from vista.errors import InputError, StageError
from vista.evaluate import figures
from vista.evaluate.bootstrap import paired_bootstrap
from vista.evaluate.gate import decide
from vista.evaluate.metrics import Scores, by_slice, calibration_bins, measure
from vista.evaluate.refresh_report import (
    ModelFigures,
    RefreshReport,
    RegionFigures,
    StageSeconds,
    Tracking,
    TrainedOn,
    TrainingCurve,
)
from vista.evaluate.report import print_table, read_report, render, write_report
from vista.evaluate.summary_map import MAP_USERS, summary_map

MODELS = {
    "vista_foundation": 0.15,
    "vista_downstream": 0.2,
    "din": 0.6,
    "mean_pool": 0.8,
    "no_history": 5.0,
    "lightgbm": 0.5,
}
ROWS, USERS = 6_000, 1_500


def example_report() -> RefreshReport:
    """Six models of falling quality on generated predictions."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-0.2, 1.2, ROWS)
    users = rng.integers(0, USERS, ROWS)
    labels = (rng.random(ROWS) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    scores = {
        name: 1 / (1 + np.exp(-(logits + rng.normal(0, sd, ROWS)) / np.sqrt(1 + sd**2)))
        for name, sd in MODELS.items()
    }
    length = rng.integers(0, 200, ROWS)
    slices = {
        "history 0": np.zeros(ROWS, dtype=bool),
        "history 1 .. 99": length < 100,
        "history 100 and more": length >= 100,
    }
    trained_on = TrainedOn(first_day=0, end_day=6, rows=180_384)
    groups = ("1 .. 9 events", "10 .. 99 events", "100 and more")
    group = rng.integers(0, 3, USERS)
    summaries = rng.normal(0, 1, (USERS, 4, 8)) + group[:, None, None] * rng.normal(0, 1, (4, 8))
    new, old = scores["vista_downstream"], scores["din"]
    gate = decide(
        GateConfig(resamples=100),
        users,
        labels,
        new,
        old,
        slices,
        {"east": 1.0, "west": 1.0},
        canaries_equal=True,
    )
    steps = tuple(range(0, 400, 20))
    values: dict[str, Any] = {
        "run_id": "manual-2022-05-08",
        "recipe": "kuairand",
        "dataset": "kuairand",
        "dataset_digest": "5f3d0c6a41b2",
        "clock": "event_time",
        "rows": 222_869,
        "test_rows": ROWS,
        "users": 25_156,
        "oracle_auc": 0.7614,
        "models": {
            name: ModelFigures(**measure(users, labels, one, one).model_dump(), trained_on=trained_on)
            for name, one in scores.items()
        },
        "slices": {
            slice_: {
                name: by_slice({slice_: mask}, users, labels, Scores(one, one))[slice_]
                for name, one in scores.items()
            }
            for slice_, mask in slices.items()
        },
        "paired": paired_bootstrap(users, labels, scores, "din", resamples=100),
        "gate": gate,
        "regions": {
            "east": RegionFigures(coverage=1.0, lag_records=0, oldest_summary_age_s=90_061.0),
            "west": RegionFigures(coverage=0.9987, lag_records=1_204, oldest_summary_age_s=None),
        },
        "space": "kuairand-5f3d0c",
        "epoch": 6,
        "release": "r-000001",
        "promoted": gate.promote,
        "reasons": gate.reasons,
        "mlflow": Tracking(url="postgresql://vista:hunter2@db/mlflow", run_id="0a1b2c3d"),
        "install_s": 143.2,
        "stages": tuple(
            StageSeconds(name=name, seconds=seconds)
            for name, seconds in (("prepare", 14.2), ("train_foundation", 131.0), ("export_summaries", 22.7))
        ),
        "curves": tuple(
            TrainingCurve(
                model=model,
                metric=metric,
                steps=steps,
                values=tuple(0.5 + 0.2 * np.exp(-np.array(steps) / scale)),
            )
            for metric in ("training loss", "validation AUC")
            for model, scale in (("vista_foundation", 90), ("vista_downstream", 40))
        ),
        "calibration": {name: calibration_bins(labels, one) for name, one in scores.items()},
        "summary_map": summary_map(summaries, "activity", [groups[g] for g in group], groups),
    }
    return RefreshReport(**values)


REPORT = example_report()


@pytest.fixture(scope="module")
def page() -> str:
    return render(REPORT)


class Page(HTMLParser):
    """Tags, ids, attributes that load or link something, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "use"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.links.append(value or "")
            assert not name.startswith("on"), f"{name} runs a script"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "use"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag != "use":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_json_has_the_keys_that_programs_rely_on(tmp_path: Path, page: str) -> None:
    write_report(tmp_path, REPORT)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    kept = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    promised = "dataset rows models paired regions space epoch release mlflow install_s stages"
    assert set(promised.split()) <= set(kept)
    assert set(MODELS) == set(kept["models"])
    assert {"auc", "ne", "gauc", "trained_on"} <= set(kept["models"]["din"])
    assert {"coverage", "lag_records", "oldest_summary_age_s"} == set(kept["regions"]["east"])
    assert kept["stages"][0] == {"name": "prepare", "seconds": 14.2}
    assert read_report(tmp_path) == REPORT


@pytest.mark.parametrize("content", ["", "{}", "[", "{"])
def test_a_damaged_report_is_named_with_its_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(StageError, match=r"report\.json cannot be read .*delete stages/clean_up\.json"):
        read_report(tmp_path)


def test_page_is_one_file_without_script_or_address(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert not {"script", "iframe", "link", "object", "embed", "form", "base", "a"} & set(parsed.tags)
    assert all(link.startswith("#") for link in parsed.links)
    assert not re.search(r"https?:|//(?!vista:)|@import|url\((?!#)|javascript:", page)
    assert "default-src 'none'" in page


def test_pictures_of_one_page_do_not_share_ids(page: str) -> None:
    parsed = Page(page)
    assert parsed.tags.count("svg") == 4
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)


def test_page_shows_every_figure_of_the_acceptance_list(page: str) -> None:
    text = Page(page).text
    for model in REPORT.models.values():
        assert f"{model.auc:.4f}" in text
        assert f"{model.ne:.4f}" in text
    for difference in REPORT.paired.values():
        assert f"{difference.ne.low:+.4f} .. {difference.ne.high:+.4f}" in text
    for words in (
        *REPORT.reasons,
        "Promoted: release r-000001 now serves epoch 6 of space kuairand-5f3d0c.",
        "99.87%",
        "1 d 1 h",
        "2 min 11 s",
        "0.7614",
        "kuairand-5f3d0c",
        "run 0a1b2c3d",
        "history 100 and more",
    ):
        assert words in text, words


def test_page_without_anything_optional_is_whole() -> None:
    report = REPORT.model_copy(
        update={
            "oracle_auc": None,
            "slices": {},
            "paired": {},
            "gate": REPORT.gate.model_copy(
                update={"ne_loss": None, "slices": (), "not_compared": "the champion <r-1> is gone"}
            ),
            "release": None,
            "promoted": False,
            "reasons": ("region west holds 99.8700% of the users' summaries",),
            "install_s": None,
            "curves": (),
            "calibration": {},
            "summary_map": None,
        }
    )
    parsed = Page(render(report))
    assert parsed.open == []
    assert "svg" not in parsed.tags
    assert "Not promoted: nothing serves yet." in parsed.text
    assert "Not compared: the champion <r-1> is gone." in parsed.text
    kept = report.model_copy(update={"release": "r-000001"})
    assert "Not promoted: release r-000001 keeps serving." in Page(render(kept)).text


def test_names_from_outside_cannot_become_markup_or_formulas() -> None:
    """Run ids, slices and models may be named by users; `$` would start a formula in matplotlib."""
    hostile = '<script>alert("1")</script> $x^2$ & {{ 7 * 7 }}'
    report = REPORT.model_copy(
        update={
            "run_id": hostile,
            "reasons": (hostile,),
            "models": {hostile: REPORT.models["din"]},
            "paired": {hostile: REPORT.paired["vista_downstream"]},
            "calibration": {hostile: REPORT.calibration["din"]},
            "curves": (TrainingCurve(model=hostile, metric=hostile, steps=(0, 1), values=(0.1, 0.2)),),
            "summary_map": None,
        }
    )
    page = render(report)
    assert "script" not in Page(page).tags
    text = Page(page).text
    assert text.count(hostile) == 11  # title, heading, two reasons, three tables, four places in pictures
    assert text.count("alert") == 11


def test_a_password_is_not_kept(page: str) -> None:
    for text in (REPORT.model_dump_json(), page):
        assert "hunter2" not in text
        assert "postgresql://vista:***@db/mlflow" in text
    assert Tracking(url="sqlite:////a/b@c/mlflow.db", run_id="1").url == "sqlite:////a/b@c/mlflow.db"
    assert Tracking(url="postgresql://v:p@ss@db/x", run_id="1").url == "postgresql://v:***@db/x"


def test_pictures_are_well_formed_and_repeatable(page: str) -> None:
    for draw, content in (
        (figures.training_curves, REPORT.curves),
        (figures.calibration, REPORT.calibration),
        (figures.paired_differences, REPORT.paired),
        (figures.summary_map, REPORT.summary_map),
    ):
        svg = draw(content)
        named = svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1)  # HTML needs no declaration, XML does
        assert ElementTree.fromstring(named).tag == "svg"
        assert svg in page


def curve_of(model: str, metric: str, steps: int) -> TrainingCurve:
    values = tuple(1 / step for step in range(1, steps + 1))
    return TrainingCurve(model=model, metric=metric, steps=tuple(range(1, steps + 1)), values=values)


def test_curves_share_one_legend_below_and_are_no_longer_than_can_be_seen() -> None:
    curves = [curve_of(model, "loss", 6_000 + place) for place, model in enumerate(("din", "vista"))]
    curves += [curve_of(model, "valid_auc", 1) for model in ("din", "vista")]
    svg = figures.training_curves(curves)
    assert re.findall(r'id="training-curves-(axes_\d+|legend_\d+)"', svg) == ["axes_1", "legend_1"]
    _, axes, legend = re.split(r'id="training-curves-(?:axes|legend)_1"', svg)
    assert ">din<" in legend
    lowest = max(float(y) for y in re.findall(r'"M [\d.]+ ([\d.]+) ', axes))
    assert min(float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+) ", legend)) > lowest
    assert 55 < max(path.count("L ") for path in re.findall(r' d="([^"]*)"', axes)) <= figures.CURVE_POINTS
    assert figures.training_curves([curve_of("din", "valid_auc", 1)]) == ""


def test_a_map_of_one_group_has_no_legend() -> None:
    points = REPORT.summary_map
    assert points is not None
    alone = points.model_copy(update={"group": (points.groups[0],) * len(points.x)})
    assert "legend_1" in figures.summary_map(points)
    assert "legend_1" not in figures.summary_map(alone)
    assert "coloured by" not in Page(render(REPORT.model_copy(update={"summary_map": alone}))).text
    assert "coloured by activity" in Page(render(REPORT)).text


def test_tasks_beside_the_first_have_their_auc() -> None:
    """Of the models that learn them; where there is one task nothing is said."""
    assert "AUC of" not in print_table(REPORT) + render(REPORT)
    areas = {"long_view": 0.71234, "is_like": 0.8}
    learned = {"vista_downstream": areas, "din": areas}
    models = {
        name: one.model_copy(update={"other_auc": learned.get(name, {})})
        for name, one in REPORT.models.items()
    }
    report = REPORT.model_copy(update={"models": models})
    table = print_table(report).split("\n\n")[2].splitlines()
    assert table[0].split() == ["AUC", "of", "long_view", "is_like"]
    assert sorted(line.split() for line in table[2:]) == [
        [name, "0.7123", "0.8000"] for name in sorted(learned)
    ]
    page = Page(render(report))
    assert "AUC of long_view" in page.text
    assert page.text.count("0.7123") == len(learned)
    assert RefreshReport.model_validate_json(report.model_dump_json()) == report


def test_baselines_that_rank_better_are_named_beside_the_verdict() -> None:
    """Of the example's models, compared with `din`, one that is worse and two that are better."""
    text, page = print_table(REPORT), Page(render(REPORT)).text
    for shown in (text, page):
        assert re.findall(r"(\w+) ranks better than din: AUC \+0\.\d+ \(\+", shown) == ["lightgbm"]


def test_terminal_table_is_aligned_and_complete() -> None:
    text = print_table(REPORT)
    models = text.split("\n\n")[1].splitlines()
    auc_column = models[0].index("AUC") + 3
    assert [line[:auc_column].split()[-1] for line in models[2:]] == [
        *(f"{one.auc:.4f}" for one in REPORT.models.values()),
        "0.7614",
    ]
    for line in models[2:-1]:
        assert line[auc_column + 2 : auc_column + 8].replace(".", "").isdigit()
    for words in ("west      99.87%  1,204", "1 d 1 h", "train_foundation  2 min 11 s", "(installation)"):
        assert words in text
    assert "Promoted: release r-000001" in text
    assert "MLflow   postgresql://vista:***@db/mlflow, run 0a1b2c3d" in text
    assert max(map(len, text.splitlines())) <= 140


def test_report_refuses_nan() -> None:
    with pytest.raises(ValueError, match="finite"):
        RegionFigures(coverage=float("nan"), lag_records=0, oldest_summary_age_s=None)


def test_summary_map_finds_the_directions_of_largest_variance() -> None:
    rng = np.random.default_rng(1)
    hidden = rng.normal(0, (10, 5), (400, 2))
    basis, _ = np.linalg.qr(rng.normal(0, 1, (12, 12)))
    summaries = (hidden @ basis[:2] + rng.normal(0, 0.1, (400, 12))).reshape(400, 3, 4)
    found = summary_map(summaries, "half", ["low", "high"] * 200, ["low", "high"])
    for points, truth in ((found.x, hidden[:, 0]), (found.y, hidden[:, 1])):
        assert abs(np.corrcoef(points, truth)[0, 1]) > 0.99
    assert found.explained == pytest.approx((0.8, 0.2), abs=0.05)
    assert found.group == ("low", "high") * 200
    again = summary_map(summaries, "half", ["low", "high"] * 200, ["low", "high"])
    assert again == found


def test_summary_map_draws_a_sample_and_keeps_users_with_their_groups() -> None:
    users = MAP_USERS + 500
    value = np.arange(users) - users / 2
    summaries = np.stack([value, np.zeros(users)], axis=1)[:, None, :]
    found = summary_map(summaries, "sign", np.where(value < 0, "minus", "plus").tolist(), ["minus", "plus"])
    assert len(found.x) == len(found.group) == MAP_USERS
    assert found.explained == pytest.approx((1.0, 0.0))
    plus = np.array(found.group) == "plus"
    middle = (np.array(found.x)[plus].min() + np.array(found.x)[~plus].max()) / 2
    separated = np.array(found.x) > middle  # the direction of a component is arbitrary
    assert (separated == plus).all() or (separated == ~plus).all()


def test_summary_map_of_equal_summaries_and_of_bad_ones() -> None:
    flat = summary_map(np.ones((5, 2, 4)), "one", ["a"] * 5, ["a"])
    assert flat.explained == (0.0, 0.0)
    assert max(map(abs, flat.x)) < 1e-9
    with pytest.raises(InputError, match="at least 3 users"):
        summary_map(np.ones((2, 2, 4)), "one", ["a"] * 2, ["a"])
    with pytest.raises(InputError, match=r"groups \['b'\] are not among \['a'\]"):
        summary_map(np.ones((3, 2, 4)), "one", ["a", "b", "a"], ["a"])
    with pytest.raises(InputError, match="NaN"):
        summary_map(np.full((3, 2, 4), np.nan), "one", ["a"] * 3, ["a"])
