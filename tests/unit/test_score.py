"""Scoring from the stores, and the operators' commands: a real data set, random models, real delivery."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from delivery_samples import BUCKETS, deliver_here, finish_stages, keep_report, settings_of

from vista.__main__ import main
from vista.config import DataConfig, GeneratedConfig, ModelConfig, Settings, WindowConfig
from vista.data.dataset import Dataset
from vista.data.features import serving_batch
from vista.data.files import checksum
from vista.data.prepare import prepare_dataset
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Epoch
from vista.delivery.publish import attempt_directory, commit
from vista.delivery.regions import open_backends, open_regions
from vista.delivery.release import promote
from vista.errors import EpochError, InputError, SpaceMismatchError, StageError
from vista.model.checkpoint import CheckpointMeta, load, save
from vista.model.downstream import Downstream
from vista.model.inputs import tensors
from vista.model.ranker import Ranker
from vista.runs import write_sealed
from vista.serve.score import Answer, score
from vista.summary.codec import decode_summary
from vista.summary.export import ExportedEpoch, export_bucket

SPACE = "smoke-test"
MODEL = ModelConfig(
    width=8, heads=2, seeds=3, mlp=(16,), embedding_init=0.5, use_user_id=False, recent_tail=2
)
USER, ITEMS = "7", ["3", "11", "19"]


def make_run(home: Path, number: int, as_of_day: int) -> None:
    """A released run with a random model: data set, checkpoints, an epoch in two regions, a release."""
    settings = settings_of(home)
    data = settings.runs / f"run-{number}" / "data"
    generated = GeneratedConfig(users=60, items=64, events_per_user=24, days=6)
    prepare_dataset(
        DataConfig(source="generated", buckets=BUCKETS, max_uih=16, generated=generated), data, WindowConfig()
    )
    dataset = Dataset.open(data)
    as_of_us = dataset.day_start_us(as_of_day)
    spec = dataset.spec(as_of_us)
    torch.manual_seed(number)
    foundation = Ranker(MODEL, spec, "vista").eval()
    train = settings.runs / f"run-{number}" / "train"
    for kind, model in (("vista", foundation), ("downstream", Downstream.from_foundation(foundation))):
        name = "foundation" if kind == "vista" else kind
        meta = CheckpointMeta(
            kind=kind, config=MODEL, spec=spec, space=SPACE, trained_until_us=as_of_us, max_uih=16
        )  # type: ignore[arg-type]
        save(train / name, model, meta)
    epoch = export(settings, foundation, dataset, as_of_us, number)
    finish_stages(settings, f"run-{number}", epoch)
    deliver_here(home, epoch, settings)
    with open_backends(settings) as backends:
        releases = backends.catalog.releases()
        promote(
            backends, space=SPACE, epoch=epoch.epoch, foundation=f"{train}/foundation",
            downstream=f"{train}/downstream", actor="me", reason="first" if number == 1 else "better",
            instead_of=releases[-1].id if releases else None,
        )  # fmt: skip


def export(settings: Settings, model: Ranker, dataset: Dataset, as_of_us: int, number: int) -> Epoch:
    with closing(open_catalog(settings.catalog_url)) as catalog:
        epoch = catalog.open_epoch(
            space=SPACE, export_id=f"export-{number}", as_of_us=as_of_us, trained_until_us=as_of_us,
            checkpoint="c", codec="int8", buckets=BUCKETS,
        )  # fmt: skip
        attempt = attempt_directory(settings.warehouse, epoch, "one")
        exported = ExportedEpoch(
            space=SPACE, epoch=epoch.epoch, as_of_us=as_of_us, codec="int8", zstd=True, made_by="test"
        )
        for bucket in range(BUCKETS):
            export_bucket(model, 16, dataset, bucket, exported, attempt)
        return commit(catalog, epoch, attempt)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two releases of one space: run-1 as of day 4, run-2 as of day 5."""
    home = tmp_path_factory.mktemp("released")
    for number in (1, 2):
        make_run(home, number, as_of_day=3 + number)
    return home


@pytest.fixture
def settings(tmp_path: Path, released: Path) -> Settings:
    """A copy of everything that a test may change; checkpoints, data and table are shared."""
    shared = shutil.ignore_patterns("warehouse", "runs")
    shutil.copytree(released, tmp_path, dirs_exist_ok=True, ignore=shared)
    return settings_of(tmp_path).model_copy(update={"runs": released / "runs"})


@pytest.fixture
def command_line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("VISTA_HOME", str(settings.home))
    monkeypatch.setenv("VISTA_RUNS", str(settings.runs))
    for name in ("VISTA_REGIONS", "VISTA_CATALOG_URL", "VISTA_LOG_URL", "VISTA_WAREHOUSE"):
        monkeypatch.delenv(name, raising=False)
    return settings


@pytest.fixture
def data(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """The data set of the release, put back as it was afterwards."""
    data, kept = settings.runs / "run-2" / "data", tmp_path / "kept"
    shutil.copytree(data, kept)
    yield data
    shutil.rmtree(data)
    shutil.copytree(kept, data)


def by_hand(settings: Settings, number: int, *, fallback: bool = False) -> np.ndarray:
    """The same scores, computed from the record and the model without the store's reader."""
    data = settings.runs / f"run-{number}" / "data"
    model, _ = load(settings.runs / f"run-{number}" / "train" / "downstream")
    assert isinstance(model, Downstream)
    with open_regions(settings, BUCKETS) as stores:
        (record,) = stores["east"].get_many(SPACE, number, [int(USER)])
    summary_SD = model.fallback_summary_SD
    if not fallback:
        assert record is not None
        summary_SD = torch.from_numpy(decode_summary(record)[1])
    dataset = Dataset.open(data)
    cut_us = dataset.newest_event_us + 1
    batch = serving_batch(dataset, int(USER), [int(item) for item in ITEMS], cut_us, 2)
    assert batch.seq_offsets.tolist() == [0, 2]
    with torch.inference_mode():
        logits_CT = model(tensors(batch, "cpu"), summary_SD[None]).logits_CT
    found: np.ndarray = torch.sigmoid(logits_CT).numpy()
    return found


def matrix(answer: Answer) -> np.ndarray:
    return np.array([[answer.scores[item][task] for task in answer.scores[item]] for item in ITEMS])


def break_region(settings: Settings, name: str) -> None:
    path = settings.home / "stores" / f"{name}.db"
    for file in path.parent.glob(f"{name}.db*"):
        file.unlink()
    path.write_bytes(b"no database" * 1_000)


def test_an_answer_comes_from_the_nearest_region_and_says_of_what_it_is_made(settings: Settings) -> None:
    answer = score(settings, USER, ITEMS)
    assert np.array_equal(matrix(answer), by_hand(settings, 2))
    assert len(np.unique(matrix(answer))) == 3, "the candidates differ"
    with closing(open_catalog(settings.catalog_url)) as catalog:
        release = catalog.releases()[-1]
        as_of_us = catalog.list_epochs(SPACE)[1].as_of_us
    data = settings.runs / "run-2" / "data"
    assert (answer.release, answer.space, answer.epoch) == (release.id, SPACE, 2)
    assert (answer.region, answer.degraded) == ("east", None)
    assert answer.summary_age_s == (Dataset.open(data).newest_event_us - as_of_us) / 1e6 > 0
    assert list(answer.scores) == ITEMS
    assert set(answer.scores["3"]) == {"label"}


def test_text_ids_are_those_of_the_data_set_and_not_of_a_damaged_file(settings: Settings, data: Path) -> None:
    numbers, texts = score(settings, USER, ITEMS), data / "ids-user.parquet"
    pl.DataFrame({"text": [f"u{number}" for number in range(60)]}).write_parquet(texts)
    file = Dataset.open(data).file
    checksums = {**file.checksums, texts.name: checksum(texts)}
    write_sealed(
        data / "dataset.json", file.model_copy(update={"checksums": checksums}).model_dump(mode="json")
    )
    found = score(settings, f"u{USER}", ITEMS)
    assert (found.scores, found.region) == (numbers.scores, "east")
    assert (score(settings, "stranger", ITEMS).degraded or "").startswith("user 'stranger' is in no event")
    pl.DataFrame({"text": [f"u{number}" for number in reversed(range(60))]}).write_parquet(texts)
    with pytest.raises(StageError, match=r"ids-user\.parquet cannot be read \(its checksum is"):
        score(settings, f"u{USER}", ITEMS)


def test_regions_fail_over_and_at_last_the_fallback_answers(settings: Settings) -> None:
    whole = matrix(score(settings, USER, ITEMS))
    fallback = by_hand(settings, 2, fallback=True)
    break_region(settings, "east")
    answer = score(settings, USER, ITEMS)
    assert (answer.region, answer.degraded) == ("west", None)
    assert np.array_equal(matrix(answer), whole)
    (settings.home / "stores" / "west.db").unlink()  # an empty store: not complete
    answer = score(settings, USER, ITEMS)
    assert (answer.region, answer.summary_age_s) == (None, None)
    assert answer.degraded is not None
    assert "region east" in answer.degraded
    assert "NOTADB" in answer.degraded
    assert "region west: it does not hold all of epoch 2" in answer.degraded
    assert np.array_equal(matrix(answer), fallback)
    assert not np.array_equal(fallback, whole)


def test_a_user_without_summary_gets_the_fallback(settings: Settings) -> None:
    answer = score(settings, "999999", ITEMS)
    assert (answer.region, answer.degraded, answer.unknown_items) == (
        None,
        "user '999999' is in no event of the release's data; region east holds no summary of this user",
        (),
    )
    assert np.isfinite(matrix(answer)).all()


def test_an_item_that_the_model_has_not_trained_on_is_named(settings: Settings) -> None:
    answer = score(settings, USER, ["3", "123456"])
    assert answer.unknown_items == ("123456",)
    assert answer.degraded is None
    assert list(answer.scores) == ["3", "123456"], "it is scored all the same"


@pytest.mark.must_hold(13)
def test_after_a_rollback_the_old_models_answers_are_bit_identical(
    command_line: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = command_line
    before = by_hand(settings, 1)
    assert main(["rollback", "--reason", "worse"]) == 0
    assert "epoch 1 of smoke-test" in capsys.readouterr().out
    answer = score(settings, USER, ITEMS)
    assert answer.epoch == 1
    assert np.array_equal(matrix(answer), before)
    assert main(["verify"]) == 0
    assert main(["releases"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("* r-") == 1
    assert printed.splitlines()[-2].startswith("* r-")
    assert ": worse" in printed.splitlines()[-2]
    assert main(["rollback", "--reason", "even worse"]) == 2, "there is nothing before the first"


@pytest.mark.must_hold(13)
def test_a_model_of_another_space_is_a_typed_error(settings: Settings, tmp_path: Path) -> None:
    model, meta = load(settings.runs / "run-2" / "train" / "downstream")
    save(tmp_path / "other", model, meta.model_copy(update={"space": "other-space"}))
    with open_backends(settings) as backends:
        current = backends.catalog.releases()[-1]
        promote(
            backends, space=SPACE, epoch=2, foundation="f", downstream=str(tmp_path / "other"), actor="me",
            reason="a mistake", instead_of=current.id,
        )  # fmt: skip
    with pytest.raises(SpaceMismatchError, match=r"of space other-space, release .* needs a downstream"):
        score(settings, USER, ITEMS)


@pytest.mark.must_hold(13)
def test_a_summary_of_another_shape_is_a_typed_error(settings: Settings, tmp_path: Path) -> None:
    _, meta = load(settings.runs / "run-2" / "train" / "downstream")
    wide = Downstream(MODEL.model_copy(update={"seeds": 4}), meta.spec)
    directory = settings.runs / "run-2" / "train" / "wide"
    save(directory, wide, meta.model_copy(update={"config": wide.config}))
    with open_backends(settings) as backends:
        current = backends.catalog.releases()[-1]
        promote(
            backends, space=SPACE, epoch=2, foundation="f", downstream=str(directory), actor="me",
            reason="a mistake", instead_of=current.id,
        )  # fmt: skip
    with pytest.raises(SpaceMismatchError, match=r"shape \(3, 8\), the model reads \(4, 8\)"):
        score(settings, USER, ITEMS)


def test_a_release_of_another_runs_folder_says_so(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set VISTA_RUNS"):
        score(settings.model_copy(update={"runs": tmp_path / "elsewhere"}), USER, ITEMS)


def test_a_release_whose_epoch_the_catalog_lost_is_a_typed_error(settings: Settings) -> None:
    with closing(sqlite3.connect(settings.home / "catalog.db")) as connection, connection:
        connection.execute("DELETE FROM epochs")
    with pytest.raises(EpochError, match=f"epoch 2 of {SPACE} is not published.* VISTA_HOME"):
        score(settings, USER, ITEMS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--user", "7", "--candidates", "3,11"], 0, '"region": "east"'),
        (["--user", "seven", "--candidates", "3"], 2, "user id 'seven': write a whole number from 0"),
        (["--user", "7", "--candidates", "3,x"], 2, "item id 'x': write a whole number from 0"),
        (["--user", "1_7", "--candidates", "3"], 2, "user id '1_7': write a whole number from 0"),
        (["--user", str(2**63), "--candidates", "3"], 2, "write a whole number from 0 to 2^63 - 1"),
        (["--user=-7", "--candidates", "3"], 2, "user id '-7': write a whole number from 0"),
        (["--user", "7", "--candidates", "3,-1"], 2, "item id '-1': write a whole number from 0"),
        (["--user", "7", "--candidates", "3,123456"], 0, '"123456"\n  ]'),
        (["--user", "7", "--candidates", ","], 2, "0 item ids"),
        (["--user", "7"], 2, "Missing option '--candidates'"),
    ],
)
def test_score_on_the_command_line(
    command_line: Settings,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert main(["score", *arguments]) == code
    printed = capsys.readouterr()
    assert message in printed.out + printed.err
    assert "Traceback" not in printed.err


def test_verify_names_what_is_wrong(command_line: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    line = "region east: coverage 100.00% of epoch 2, 100.00% of epoch 1; lag 0 records"
    assert line in capsys.readouterr().out
    with open_regions(command_line, BUCKETS) as stores:
        offset = stores["west"].state(0).offset
        stores["west"].apply(0, offset, offset + 1, [b"garbage"])
    break_region(command_line, "east")
    assert main(["verify"]) == 1
    printed = capsys.readouterr().err
    assert "region east: cannot be read" in printed
    assert "region west keeps dead letters: 1" in printed


def test_promotion_by_hand_overrides_the_gate_and_is_audited(
    command_line: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = command_line
    run = finish_stages(settings, "run-1", epoch_of(settings, 1), gate=False)
    keep_report(run, "deliver", {"space": SPACE, "epoch": 1, "delivered": True, "reason": ""})
    assert main(["promote", "--run-id", "run-1", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "would replace" in printed
    assert "the gate said no: NE is worse; coverage" in printed
    with closing(open_catalog(settings.catalog_url)) as catalog:
        assert [release.epoch for release in catalog.releases()] == [1, 2], "a dry run changes nothing"
        assert main(["promote", "--run-id", "run-1", "--reason", "for the audit"]) == 0
        assert [release.epoch for release in catalog.releases()] == [1, 2, 1]
        assert catalog.audit()[-1].reason == "for the audit (the gate said no: NE is worse; coverage)"
    assert main(["promote", "--reason", "which run?"]) == 2
    assert main(["promote", "--run-id", "run-none", "--reason", "x"]) == 2


def test_a_damaged_model_is_neither_promoted_nor_rolled_back_to(
    command_line: Settings,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The models of the module's runs are shared: the damaged one is another run's copy."""
    settings = command_line
    with open_backends(settings) as backends:
        first, second = backends.catalog.releases()
        damaged = tmp_path / "damaged"
        shutil.copytree(first.downstream, damaged)
        with (damaged / "model.safetensors").open("r+b") as weights:
            weights.seek(200)
            weights.write(b"?")
        third = promote(
            backends, space=SPACE, epoch=1, foundation="f", downstream=str(damaged), actor="me",
            reason="read it before, not now", instead_of=second.id,
        ).release  # fmt: skip
    for arguments in (["--to", third.id, "--reason", "x"], ["--to", third.id, "--dry-run"]):
        assert main(["rollback", *arguments]) == 1
        assert "the file was changed or is incomplete" in capsys.readouterr().err
    monkeypatch.setenv("VISTA_RUNS", str(tmp_path / "runs"))
    run = finish_stages(Settings.from_environment(), "run-3", epoch_of(settings, 1))
    keep_report(run, "deliver", {"space": SPACE, "epoch": 1, "delivered": True, "reason": ""})
    shutil.copytree(damaged, run.path / "train" / "downstream")
    assert main(["promote", "--run-id", "run-3", "--reason", "x"]) == 1
    assert "the file was changed or is incomplete" in capsys.readouterr().err
    with closing(open_catalog(settings.catalog_url)) as catalog:
        assert catalog.releases() == [first, second, third]


def epoch_of(settings: Settings, number: int) -> Epoch:
    with closing(open_catalog(settings.catalog_url)) as catalog:
        return catalog.list_epochs(SPACE)[number - 1]


def test_operators_of_an_empty_deployment_are_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VISTA_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("VISTA_REGIONS", raising=False)
    assert main(["releases"]) == 0
    assert main(["score", "--user", "1", "--candidates", "2"]) == 2
    assert main(["rollback"]) == 2
    assert main(["rollback", "--reason", "x"]) == 2
    assert main(["verify"]) == 2
    assert main(["deliver", "--region", "north"]) == 2
    assert main(["audit"]) == 0
    assert main(["freeze", "--reason", "x"]) == 2
    assert main(["repair", "--reason", "x"]) == 2
    assert main(["retire", "--space", "s", "--epoch", "1", "--reason", "x"]) == 2
    assert main(["withdraw", "--space", "s", "--epoch", "1", "--reason", "x"]) == 1
    assert not (tmp_path / "empty").exists(), "nobody made a deployment by asking"
    printed = capsys.readouterr()
    assert f"nothing is released in sqlite:///{tmp_path}/empty/catalog.db: set VISTA_HOME" in printed.out
    assert f"no operator has done anything in sqlite:///{tmp_path}/empty/catalog.db" in printed.out
    assert "--reason is missing" in printed.err
    assert "start production_refresh (without a stack: `make run`) first" in printed.err
    assert "log.db is empty" not in printed.err, "that nothing is released says more"
    assert "epoch 1 of s is not published" in printed.err
    assert "region 'north' does not exist: east, west" in printed.err
