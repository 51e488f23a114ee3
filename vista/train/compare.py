"""The runs of one MLflow experiment side by side: what differs between their parameters, their metrics and,
where two were tested on the same rows, the paired difference with its interval.

What MLflow's compare page shows, and what it cannot: whether a difference is more than the luck of the draw.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vista.config import Frozen, Settings
from vista.errors import InputError
from vista.evaluate.bootstrap import PairedDifference, paired_bootstrap
from vista.evaluate.report import counted, difference, figure, text_table
from vista.train.mlflow_store import MANY, client, file_of, mapped
from vista.train.model_run import ROWS, kept_scores
from vista.train.tracking import PARENT

LOG = logging.getLogger(__name__)

METRICS = ("test_auc", "test_ne", "test_gauc", "test_calibration")
"""Shown unless others are asked for; the first one sorts."""

REFERENCE = "vista"
PROGRESS_S = 5.0
WIDEST = 24
"""Characters of a parameter's value in the table; the JSON has all of them."""
NOT_PARAMETERS = ("run_id", "name")
"""What the name of a run says already."""


class Run(Frozen):
    """One run. `model` and `seed` are empty where the experiment is no grid; `rows` is the digest of the test
    rows whose scores it kept, empty if it kept none; `why` says why `difference` is not there."""

    id: str
    name: str
    started: str
    model: str
    seed: str
    data: str
    rows: str
    params: dict[str, str]
    metrics: dict[str, float]
    reference: str = ""
    difference: PairedDifference | None = None
    why: str = ""


class Comparison(Frozen):
    """`runs` are sorted by the first of `metrics`, the best one first. `parent` is the grid's run, and
    `other_parents` are those of the same experiment that are not shown."""

    experiment: str
    parent: str
    other_parents: tuple[str, ...]
    metrics: tuple[str, ...]
    differing: tuple[str, ...]
    runs: tuple[Run, ...]

    def text(self) -> str:
        """A table per set of rows, and why runs have no interval."""
        below = f" below {self.parent}" if self.parent else ""
        others = f" (also: {', '.join(self.other_parents)}; --parent)" if self.other_parents else ""
        parts = [f"{self.experiment}: {counted(len(self.runs), 'run')}{below}{others}"]
        for data, rows in dict.fromkeys((run.data, run.rows) for run in self.runs):
            parts.append(self._table([run for run in self.runs if (run.data, run.rows) == (data, rows)]))
        parts += [f"{run.name}: no interval: {run.why}" for run in self.runs if run.why]
        if any(run.difference for run in self.runs):
            parts.append(
                "Differences: the run minus the one that it is compared with, with the 95% interval of a "
                "paired bootstrap over users. A claim takes more than one seed."
            )
        return "\n\n".join(parts)

    def _table(self, runs: Sequence[Run]) -> str:
        known = f"data {runs[0].data[:8] or 'unknown'}, test rows {runs[0].rows[:8] or 'not kept'}"
        if number := runs[0].metrics.get("test_rows"):
            known += f" ({number:,.0f})"
        compared = any(run.difference for run in runs)
        header = ["run", *self.differing, *self.metrics]
        header += ["compared with", "AUC difference", "NE difference"] if compared else []
        lines = [self._line(run, compared) for run in runs]
        return f"{known}\n{text_table(header, lines, left=range(1 + len(self.differing)))}"

    def _figure(self, run: Run, metric: str) -> str:
        """Without decimals where no run of the comparison has any: a count."""
        values = [one.metrics[metric] for one in self.runs if metric in one.metrics]
        return figure(run.metrics.get(metric), 0 if all(value.is_integer() for value in values) else 4)

    def _line(self, run: Run, compared: bool) -> list[str]:
        params = [run.params.get(name, "-") for name in self.differing]
        cut = [text if len(text) <= WIDEST else f"{text[: WIDEST - 2]}.." for text in params]
        cells = [run.name, *cut, *(self._figure(run, name) for name in self.metrics)]
        if not compared:
            return cells
        one = run.difference
        return [*cells, *((run.reference, difference(one.auc), difference(one.ne)) if one else ("-",) * 3)]


def compare(
    settings: Settings, experiment: str, parent: str = "", reference: str = "", metrics: Sequence[str] = ()
) -> Comparison:
    """The finished runs of an experiment, of a grid those below its newest run, or below `parent`.

    Each is paired with the run called `reference` (a run, or a model of a grid, then of the same seed); by
    default with `vista`, or else with the oldest one of the same rows. Raises `InputError` for names that do
    not exist.
    """
    found = _runs_of(settings, experiment)
    parents = [run for run in found if any(run.info.run_id == _parent(one) for one in found)]
    chosen = _chosen(parents, parent)
    below = "" if chosen is None else chosen.info.run_id
    leaves = [run for run in found if run.info.status == "FINISHED" and run not in parents]
    runs = [_run(run) for run in leaves if _parent(run) == below]
    if not runs:
        raise InputError(f"MLflow's experiment {experiment} has no finished run to compare")
    shown = _shown(runs, metrics)
    return Comparison(
        experiment=experiment,
        parent="" if chosen is None else chosen.info.run_name,
        other_parents=tuple(one.info.run_name for one in parents if one is not chosen),
        metrics=shown,
        differing=_differing(runs),
        runs=tuple(sorted(_paired(settings, runs, reference), key=lambda run: _rank(run, shown[0]))),
    )


@mapped
def _runs_of(settings: Settings, experiment: str) -> list[Any]:
    """The newest first."""
    file = file_of(settings.mlflow_url)
    store = None if file is not None and not file.exists() else client(settings.mlflow_url)
    found = None if store is None else store.get_experiment_by_name(experiment)
    if store is not None and found is not None:
        runs: list[Any] = store.search_runs(
            [found.experiment_id], max_results=MANY, order_by=["attributes.start_time DESC"]
        )
        return runs
    names = sorted(one.name for one in store.search_experiments()) if store is not None else []
    exist = f"there are {', '.join(names)}" if names else "there is none; set VISTA_HOME to a deployment"
    raise InputError(f"MLflow's experiment {experiment!r} does not exist in {settings.mlflow_url}: {exist}")


def _parent(run: Any) -> str:
    return str(run.data.tags.get(PARENT, ""))


def _chosen(parents: Sequence[Any], wanted: str) -> Any | None:
    if not wanted:
        return parents[0] if parents else None
    for run in parents:
        if wanted in (run.info.run_name, run.info.run_id):
            return run
    names = ", ".join(run.info.run_name for run in parents) or "this experiment has none"
    raise InputError(f"--parent {wanted!r} has no runs below it: choose one of {names}")


def _run(run: Any) -> Run:
    tags = run.data.tags
    return Run(
        id=run.info.run_id,
        name=run.info.run_name,
        started=datetime.fromtimestamp(run.info.start_time / 1_000, UTC).isoformat(timespec="milliseconds"),
        model=tags.get("vista.model", ""),
        seed=tags.get("vista.seed", ""),
        data=tags.get("vista.data_digest", ""),
        rows=tags.get(ROWS, ""),
        params=run.data.params,
        metrics=run.data.metrics,
    )


def _shown(runs: Sequence[Run], wanted: Sequence[str]) -> tuple[str, ...]:
    known = sorted({name for run in runs for name in run.metrics})
    for name in wanted:
        if name not in known:
            raise InputError(f"--metrics {name!r}: no run has it; there are {', '.join(known)}")
    default = [name for name in METRICS if name in known]
    shown = tuple(wanted or default or [name for name in known if not name.startswith("system/")])
    if not shown:
        raise InputError("no run has a metric: there is nothing to compare")
    return shown


def _differing(runs: Sequence[Run]) -> tuple[str, ...]:
    """Parameters that are not the same in all runs, in their order; of those with one name that say the same,
    `seeds` and `model.seeds`, the first."""
    columns: dict[tuple[str | None, ...], str] = {}
    for name in dict.fromkeys(name for run in runs for name in run.params if name not in NOT_PARAMETERS):
        values = [run.params.get(name) for run in runs]
        if len(set(values)) > 1:
            columns.setdefault((name.rpartition(".")[2], *values), name)
    return tuple(columns.values())


def _rank(run: Run, metric: str) -> tuple[str, str, float]:
    """By rows, so that what may be compared stands together; then the best one first."""
    value = run.metrics.get(metric, float("nan"))
    best_first = -value if "auc" in metric else abs(value - 1) if "calibration" in metric else value
    return run.data, run.rows, float("inf") if value != value else best_first


def _paired(settings: Settings, runs: Sequence[Run], wanted: str) -> list[Run]:
    """Every run with its difference, or why there is none; runs of one reference share its resamples."""
    if wanted and not any(_is_called(run, wanted) for run in runs):
        raise InputError(f"--reference {wanted!r}: there are {', '.join(run.name for run in runs)}")
    references = {run.id: _reference(run, runs, wanted) for run in runs}
    paired, said_at = [], time.monotonic()
    for number, reference in enumerate(runs, start=1):
        group = [run for run in runs if references[run.id] is reference]
        if group:
            paired += _with_differences(settings, reference, group)
        if time.monotonic() - said_at > PROGRESS_S:
            LOG.info("compared with %d of %d runs", number, len(runs))
            said_at = time.monotonic()
    alone = [run for run in runs if references[run.id] is None]
    return paired + [run.model_copy(update={"why": _why_alone(run, runs, wanted)}) for run in alone]


def _is_called(run: Run, name: str) -> bool:
    return name in (run.name, run.id, run.model)


def _same_rows(one: Run, other: Run) -> bool:
    return (one.rows, one.data) == (other.rows, other.data)


def _reference(run: Run, runs: Sequence[Run], wanted: str) -> Run | None:
    """The run that this one is compared with; itself, if it is the one."""
    same = [one for one in runs if run.rows and _same_rows(one, run)]
    name = wanted or REFERENCE
    if any(_is_called(one, name) for one in same):
        called = [
            one for one in same if name in (one.name, one.id) or (one.model, one.seed) == (name, run.seed)
        ]
    else:
        called = [] if wanted else same
    return min(called, key=lambda one: (one.seed != run.seed, one.started, one.name), default=None)


def _why_alone(run: Run, runs: Sequence[Run], wanted: str) -> str:
    if not run.rows:
        return "it kept no scores"
    name = wanted or REFERENCE
    if any(_is_called(one, name) and _same_rows(one, run) for one in runs):
        return f"no run of {name} has its seed ({run.seed})"
    one = next(one for one in runs if _is_called(one, name))
    if not one.rows:
        return f"{one.name} kept no scores"
    if one.data != run.data:
        return f"tested on other data ({run.data[:8]}) than {one.name} ({one.data[:8]})"
    return f"tested on other rows ({run.rows[:8]}) than {one.name} ({one.rows[:8]})"


def _with_differences(settings: Settings, reference: Run, group: Sequence[Run]) -> list[Run]:
    """The runs of a group, each minus the reference; the seed of the resamples is the reference's own."""
    others = [run for run in group if run is not reference]
    differences: Mapping[str, PairedDifference] = {}
    if others:
        LOG.info("reading and comparing the scores of %d runs with %s", len(others), reference.name)
        kept = {run.id: kept_scores(settings.mlflow_url, run.id, run.rows) for run in (reference, *others)}
        rows = kept[reference.id]
        scores = {run_id: one.scores_N for run_id, one in kept.items()}
        seed = int(reference.seed or 0)
        differences = paired_bootstrap(rows.users_N, rows.labels_N, scores, reference.id, seed=seed)
    if not others:
        return [reference.model_copy(update={"why": "no other run of its rows is compared with it"})]
    return [
        run.model_copy(update={"reference": reference.name, "difference": differences.get(run.id)})
        for run in group
    ]
