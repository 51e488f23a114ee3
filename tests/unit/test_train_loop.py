"""The training loop: deterministic, resumed exactly, the same for any number of workers, honest on noise."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor
from training_data import DAYS, prepare_small, small_job, two_workers, untimed

from vista.config import Recipe, TrainConfig
from vista.data.batches import batches
from vista.errors import InputError, StageError
from vista.evaluate.metrics import auc
from vista.model.downstream import Downstream
from vista.model.inputs import tensors
from vista.model.ranker import Ranker, SlotName
from vista.recipes import appendix_c2, smoke
from vista.train.adam import FlatAdam
from vista.train.compute import drop_damaged, keep_values, read_curve
from vista.train.jobs import Days, RankerJob, Training
from vista.train.loop import Snapshot, fit, learning_rate
from vista.train.state import PROGRESS_FILE, STATE_FILE, Progress, load_best, load_state, read_state


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trained(job: RankerJob) -> tuple[Progress, dict[str, Tensor]]:
    training = Training(job)
    return fit(training.task()), training.model.state_dict()


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0.0, atol=tolerance, msg=name)


def test_days_without_candidates_are_named_with_a_remedy_that_there_is(dataset: Path) -> None:
    job = small_job(dataset).model_copy(update={"days": Days(first=20, valid=22, end=23)})
    with pytest.raises(InputError, match=r"^days 20 \.\. 21 of .* to train on: give more days of events$"):
        Training(job).task()


def test_a_seed_decides_everything(dataset: Path) -> None:
    first, weights = trained(small_job(dataset))
    again, same = trained(small_job(dataset))
    assert untimed(first) == untimed(again)
    assert_equal(weights, same)
    other, _ = trained(small_job(dataset, seed=1))
    assert untimed(other).curve != untimed(first).curve


def test_waiting_for_data_is_measured(dataset: Path) -> None:
    """A point per epoch; the first batch of one is always waited for."""
    progress, _ = trained(small_job(dataset))
    seconds = [point.values for point in progress.curve if "epoch_s" in point.values]
    assert len(seconds) == 2
    assert all(0.0 < one["wait_s"] < one["epoch_s"] for one in seconds)


PLATEAU = {"schedule": "plateau", "epochs": 5, "patience": 5, "learning_rate": 0.1}


@pytest.mark.parametrize(("train", "model"), [({}, {}), (PLATEAU, {}), ({}, {"mlp_batch_norm": True})])
def test_resuming_from_any_snapshot_changes_nothing(
    dataset: Path, tmp_path: Path, train: dict[str, object], model: dict[str, object]
) -> None:
    """Mid-epoch, at the end of an epoch, and after the last one."""
    job = small_job(dataset, **train)
    job = job.model_copy(update={"model": job.model.model_copy(update=model)})
    kept: list[Path] = []

    def keep(snapshot: Snapshot) -> None:
        kept.append(tmp_path / str(len(kept)))
        snapshot.write(kept[-1])

    whole = Training(job)
    undisturbed = fit(whole.task(), keep=keep)
    positions = [read_state(path)[0] for path in kept]
    assert any(position.step for position in positions), "no snapshot is in mid-epoch"
    assert [position.done for position in positions] == [False] * (len(kept) - 1) + [True]
    assert not train or {position.stalls for position in positions} >= {0, 1}, "the rate did not drop"
    for path in kept:
        resumed = Training(job)
        assert untimed(fit(resumed.task(), resume=path)) == untimed(undisturbed)
        assert_equal(resumed.model.state_dict(), whole.model.state_dict())


def test_the_best_weights_stay_and_patience_ends_it(dataset: Path, tmp_path: Path) -> None:
    job = small_job(dataset, epochs=12, patience=2, learning_rate=0.05)
    training = Training(job)
    progress = fit(training.task(), keep=lambda snapshot: snapshot.write(tmp_path))
    areas = [point.values["valid_auc"] for point in progress.curve if "valid_auc" in point.values]
    assert progress.best_epoch == int(np.argmax(areas))
    assert len(areas) == progress.best_epoch + 1 + job.train.patience < job.train.epochs
    scores_N, labels_N = training.predict(3, 4), training.labels_N()
    rows = ~np.isnan(scores_N)
    assert auc(labels_N[rows], scores_N[rows]) == progress.best_auc == max(areas)
    reloaded = Training(job)
    assert load_best(tmp_path, reloaded.model) == progress
    assert_equal(reloaded.model.state_dict(), training.model.state_dict())


def test_the_test_day_is_scored_with_own_and_with_frozen_histories(dataset: Path) -> None:
    """An event of the day moves the own score of a later session, not the frozen one."""
    training = Training(small_job(dataset))
    data, day = training.dataset, DAYS - 1
    examples = data.examples(day, day + 1)
    newest_us_E = data.events.event_time_us_N[examples.history_start_E + examples.history_length_E - 1]
    late = examples.where(newest_us_E >= data.day_start_us(day)).candidate_ids()
    scores = training.tested(day)[0]
    assert len(late)
    assert_array_equal(np.isnan(scores.own_N), np.isnan(scores.frozen_N))
    assert (scores.own_N[late] != scores.frozen_N[late]).all()
    assert_array_equal(scores.own_N, training.predict(day, day + 1))


def test_without_validation_days_the_last_weights_stay(dataset: Path) -> None:
    job = small_job(dataset).model_copy(update={"days": Days(first=0, valid=4, end=4)})
    progress, _ = trained(job)
    assert (progress.best_auc, progress.best_epoch, progress.epoch) == (None, 1, 2)


def test_days_without_candidates_are_named(dataset: Path) -> None:
    job = small_job(dataset).model_copy(update={"days": Days(first=40, valid=41, end=41)})
    with pytest.raises(InputError, match=r"days 40 \.\. 40 .* give more days"):
        Training(job).task()


@pytest.mark.parametrize("max_candidates", [128, 1])
def test_two_workers_train_what_one_trains(dataset: Path, tmp_path: Path, max_candidates: int) -> None:
    """With one example per step one of the workers has nothing to do, and takes part."""
    job = small_job(dataset, epochs=1, max_candidates_per_batch=max_candidates)
    job = job.model_copy(
        update={
            "model": job.model.model_copy(update={"dropout": 0.0, "id_dropout": 0.0}),
            "days": Days(first=0, valid=1, end=2),
        }
    )
    alone, weights = trained(job)
    together, shared = two_workers(job, tmp_path / "result")
    assert len(together.curve) > 2
    for one, other in zip(untimed(alone).curve, untimed(together).curve, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-5), one.step
    assert_equal(weights, shared, tolerance=1e-4)  # Adam divides by roots of squares near rounding


@pytest.mark.parametrize("slot", get_args(SlotName))
def test_every_tensor_is_made_where_the_model_is(dataset: Path, tmp_path: Path, slot: SlotName) -> None:
    """What does not say where is made on a device that cannot compute, so that it would be an error; a GPU
    is not there to find out."""
    job = small_job(dataset, slot, epochs=1, embedding_l2=1e-4)
    job = job.model_copy(
        update={"model": job.model.model_copy(update={"reconstruction_weight": 0.1, "recent_tail": 2})}
    )
    training = Training(job)
    with torch.device("meta"):
        fit(
            training.task(),
            keep=lambda snapshot: snapshot.write(tmp_path / str(snapshot.progress.global_step)),
        )
        assert np.isfinite(training.tested(DAYS - 1)[0].own_N).any()
    if slot in ("vista", "vista_hstu"):
        assert isinstance(training.model, Ranker)
        downstream = Downstream.from_foundation(training.model)
        with torch.device("meta"), torch.inference_mode():
            for batch in batches(training.plan(training.dataset.examples(DAYS - 1, DAYS))):
                there = tensors(batch, "cpu")
                assert downstream(there, training.model.summarise(there)).logits_CT.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to compare with")
def test_a_gpu_trains_what_the_cpu_trains(dataset: Path) -> None:
    for slot in get_args(SlotName):
        job = small_job(dataset, slot, epochs=1)
        still = {"dropout": 0.0, "id_dropout": 0.0}
        job = job.model_copy(update={"model": job.model.model_copy(update=still)})
        trainings = [Training(job, device) for device in ("cpu", "cuda:0")]
        ours, theirs = (fit(training.task()) for training in trainings)
        for one, other in zip(untimed(ours).curve, untimed(theirs).curve, strict=True):
            assert one.values == pytest.approx(other.values, abs=1e-3), (slot, one.step)
        scores, there = (training.tested(DAYS - 1)[0].own_N for training in trainings)
        np.testing.assert_allclose(there, scores, atol=1e-2)


@pytest.mark.parametrize("slot", get_args(SlotName))
def test_permuted_labels_give_half(tmp_path: Path, slot: SlotName) -> None:
    """Rows, order and evaluation give no label away; 3 standard errors of an AUC of noise. Histories and
    features are of the true labels: test_labels_of_chance.py is about those."""
    path = prepare_small(tmp_path / "set", users=150)
    job = small_job(path, slot, epochs=3, learning_rate=3e-3, patience=3)
    training = Training(job)
    candidates = training.dataset.candidates
    shuffled_CT = np.random.default_rng(0).permutation(candidates.labels_CT)
    training.dataset.__dict__["candidates"] = replace(candidates, labels_CT=shuffled_CT)
    fit(training.task())
    scores_N = training.predict(DAYS - 1, DAYS)
    rows = ~np.isnan(scores_N)
    labels = shuffled_CT[rows, 0]
    ones, zeros = int(labels.sum()), int((1 - labels).sum())
    error = np.sqrt((ones + zeros + 1) / (12 * ones * zeros))
    assert abs(auc(labels, scores_N[rows]) - 0.5) < 3 * error


def test_flat_adam_is_adam() -> None:
    torch.default_generator.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 2))
    theirs = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 2))
    theirs.load_state_dict(ours.state_dict())
    flat = FlatAdam(ours, embedding_l2=0.1)
    groups = [
        {"params": theirs[0].parameters(), "weight_decay": 0.1},
        {"params": theirs[1].parameters(), "weight_decay": 0.0},
    ]
    reference = torch.optim.Adam(groups, lr=0.01)
    for number in range(1, 30):
        rows = torch.randint(0, 7, (5,))
        for model in (ours, theirs):
            model(rows).square().sum().backward()
        flat.step(0.01, number)
        reference.step()
        reference.zero_grad()
    assert_equal(ours.state_dict(), theirs.state_dict(), tolerance=1e-6)


def test_the_rate_falls_linearly_to_its_fraction() -> None:
    config = TrainConfig(learning_rate=1.0, final_learning_rate_fraction=0.05)
    assert [learning_rate(config, done, 0) for done in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.525, 0.05])


def test_the_rate_falls_to_a_tenth_after_each_epoch_that_is_not_better(dataset: Path) -> None:
    job = small_job(dataset, schedule="plateau", epochs=8, patience=3, learning_rate=0.1)
    progress, _ = trained(job)
    expected, rate, best = [], job.train.learning_rate, 0.0
    rates: list[float] = []
    for point in progress.curve:
        if "learning_rate" in point.values:
            rates.append(point.values["learning_rate"])
            expected.append(rate)
        elif (area := point.values.get("valid_auc")) is None:
            continue  # how long the epoch took
        elif area > best:
            best = area
        else:
            rate /= 10
    assert rates == pytest.approx(expected)
    assert len({f"{rate:.6g}" for rate in rates}) == 3  # patience 3: the third stall is the end


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def without_fields(file: Path) -> None:
    file.write_bytes(b"{}")


def one_bit_changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[2 * len(content) // 3] ^= 4  # among the numbers of a state; in the curve of a progress
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, emptied, without_fields, Path.unlink])
@pytest.mark.parametrize("name", [STATE_FILE, PROGRESS_FILE])
def test_a_damaged_state_is_named_with_its_remedy(
    state: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    copy = tmp_path / "run" / "checkpoint_1"
    shutil.copytree(state, copy)
    damage(copy / name)
    model = Training(small_job(state.parent / "set")).model
    optimiser = FlatAdam(model, 0.0)
    for read in (lambda: load_best(copy, model), lambda: load_state(copy, model, optimiser)):
        with pytest.raises(StageError) as raised:
            read()
        assert str(raised.value).startswith(f"{copy / name} cannot be read (")
        assert f"delete {tmp_path}/run and run the stage again (`make run RESUME=1`)" in str(raised.value)


def test_a_state_of_which_one_bit_has_changed_is_refused(state: Path, tmp_path: Path) -> None:
    """Its numbers would be read without complaint, and the training would end in other weights."""
    copy = tmp_path / "run" / "checkpoint_1"
    shutil.copytree(state, copy)
    one_bit_changed(copy / STATE_FILE)
    with pytest.raises(StageError, match=r"state\.safetensors cannot be read \(its checksum is"):
        load_best(copy, Training(small_job(state.parent / "set")).model)


def test_the_state_of_another_model_is_refused(state: Path) -> None:
    other = small_job(state.parent / "set")
    wider = Training(other.model_copy(update={"model": other.model.model_copy(update={"width": 16})})).model
    with pytest.raises(StageError, match="size mismatch"):
        load_best(state, wider)
    with pytest.raises(StageError, match="size mismatch"):
        load_state(state, wider, FlatAdam(wider, 0.0))


def test_a_training_is_not_resumed_with_other_values(dataset: Path, tmp_path: Path) -> None:
    """A state of the same shape would be read without complaint, and the rest trained another way."""
    kept, job = tmp_path / "foundation" / "run.job.json", small_job(dataset)
    keep_values(job, kept)
    keep_values(job.model_copy(update={"dataset": tmp_path / "moved"}), kept)
    faster = job.train.model_copy(update={"learning_rate": 0.5})
    for change, named in (
        ({"train": faster}, "train.learning_rate was 0.001 and is 0.5"),
        ({"max_uih": 7}, "max_uih was 16 and is 7"),
        ({"model": job.model.model_copy(update={"phi_out": "relu"})}, "model.phi_out was silu and is relu"),
    ):
        with pytest.raises(StageError) as raised:
            keep_values(job.model_copy(update=change), kept)
        assert f"({named})" in str(raised.value)
        assert f"delete {kept.parent} and run the stage again" in str(raised.value)
    kept.write_text("{")
    with pytest.raises(StageError, match=r"run\.job\.json cannot be read"):
        keep_values(job, kept)


def test_a_training_that_diverges_says_so(dataset: Path) -> None:
    job = small_job(dataset)
    train = job.train.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(StageError, match=r"the loss of step \d+ is nan: lower the learning rate"):
        fit(Training(job.model_copy(update={"train": train})).task())


def test_scores_that_are_not_numbers_are_refused(dataset: Path) -> None:
    """NaN also means "not scored": a diverged model's rows would drop out of every metric."""
    training = Training(small_job(dataset))
    with torch.no_grad():
        next(training.model.parameters()).fill_(torch.nan)
    with pytest.raises(StageError, match=r"scores are NaN: lower the learning rate"):
        training.predict(4, 5)


@pytest.fixture(scope="module")
def state(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last state of a training, beside its data set."""
    folder = tmp_path_factory.mktemp("state")
    (folder / "set").symlink_to(dataset)
    fit(Training(small_job(dataset, epochs=1)).task(), keep=lambda one: one.write(folder / "last"))
    return folder / "last"


def ray_run(path: Path, state: Path) -> Path:
    """A run as Ray keeps it: a list, a checkpoint that it names, and one that a kill has left half copied."""
    listed, unlisted = path / "checkpoint_2026-11-24_16-40-05.1", path / "checkpoint_2026-11-24_16-40-09.2"
    shutil.copytree(state, listed)
    shutil.copytree(state, unlisted)
    cut_off(unlisted / STATE_FILE)
    latest = {"checkpoint_dir_name": listed.name, "metrics": {}}
    content = {"checkpoint_results": [latest], "latest_checkpoint_result": latest}
    (path / "checkpoint_manager_snapshot.json").write_text(json.dumps(content))
    return listed


@pytest.mark.parametrize("damaged", ["checkpoint_manager_snapshot.json", STATE_FILE, PROGRESS_FILE])
@pytest.mark.parametrize("damage", [cut_off, emptied])
def test_a_training_whose_checkpoints_cannot_be_read_begins_anew(
    state: Path, tmp_path: Path, damaged: str, damage: Callable[[Path], None]
) -> None:
    curve = tmp_path / "run.curve.json"
    curve.write_text(read_state(state)[0].model_dump_json())
    drop_damaged(tmp_path / "not there yet", tmp_path / "nor this")
    listed = ray_run(tmp_path / "run", state)
    drop_damaged(tmp_path / "run", curve)
    assert listed.exists()
    damage(next((tmp_path / "run").glob(damaged), listed / damaged))
    drop_damaged(tmp_path / "run", curve)
    assert [path.name for path in tmp_path.iterdir()] == ["run.curve.json"]


def test_what_the_disk_does_not_give_is_not_deleted(state: Path, tmp_path: Path) -> None:
    listed = ray_run(tmp_path / "run", state)
    (listed / PROGRESS_FILE).unlink()
    (listed / PROGRESS_FILE).mkdir()  # whoever reads it gets an OSError
    with pytest.raises(StageError, match="Is a directory"):
        drop_damaged(tmp_path / "run", tmp_path / "no curve")
    assert listed.exists()


@pytest.mark.parametrize("damage", [cut_off, emptied, without_fields])
def test_a_damaged_curve_is_dropped_alone(
    state: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Rank 0 writes it anew."""
    listed, curve = ray_run(tmp_path / "run", state), tmp_path / "run.curve.json"
    curve.write_text(read_state(state)[0].model_dump_json())
    damage(curve)
    if damage is not without_fields:  # every field of a progress has a default
        with pytest.raises(StageError, match=r"run\.curve\.json cannot be read .* it is written anew"):
            read_curve(curve)
    drop_damaged(tmp_path / "run", curve)
    assert curve.exists() == (damage is without_fields)
    assert listed.exists()


def test_a_plateau_needs_validation_days(dataset: Path) -> None:
    job = small_job(dataset, schedule="plateau").model_copy(update={"days": Days(first=0, valid=4, end=4)})
    with pytest.raises(InputError, match="no examples are kept for validation"):
        Training(job).task()


@pytest.mark.parametrize("column", ["amazon", "kuairand", "production"])
def test_the_appendix_s_hyper_parameters_train(
    dataset: Path, column: Literal["amazon", "kuairand", "production"]
) -> None:
    model, train = appendix_c2(column)
    job = small_job(dataset).model_copy(
        update={"model": model, "train": train.model_copy(update={"epochs": 1})}
    )
    progress, weights = trained(job)
    assert all(np.isfinite(list(point.values.values())).all() for point in progress.curve)
    assert any("running_mean" in name for name in weights) == (column == "production")


def test_batch_norm_is_refused_where_workers_share_a_batch() -> None:
    recipe = smoke("")
    model = recipe.model.model_copy(update={"mlp_batch_norm": True})
    with pytest.raises(ValueError, match="mlp_batch_norm with 2 workers"):
        Recipe.model_validate(recipe.model_dump() | {"model": model.model_dump()})
    alone = {"foundation": {"workers": 1}, "downstream": {"workers": 1}}
    Recipe.model_validate(recipe.model_dump() | {"model": model.model_dump()} | alone)
