"""What the clean-up retires, and what it leaves."""

from pathlib import Path

import pytest
from delivery_samples import deliver_here, finish_stages, publish_epoch, settings_of

from vista.config import Frozen
from vista.delivery.interfaces import Epoch
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import current_release, promote, withdraw
from vista.errors import EpochError
from vista.runs import RunDirectory
from vista.train.clean_up import expire_old, finished_epochs, kept_epochs, retire_old


class Delivered(Frozen):
    space: str
    epoch: int
    delivered: bool = True


def test_current_previous_and_next_stay(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    epochs: list[Epoch] = []
    for number, promoted in enumerate((True, True, False, True, True)):
        epoch = publish_epoch(tmp_path, space=f"space-{number}")
        deliver_here(tmp_path, epoch, settings)
        run = finish_stages(settings, f"run-{number}", epoch, gate=promoted)
        report = Delivered(space=epoch.space, epoch=epoch.epoch)
        run.keep_stage_report("deliver", report, seconds=0.0)
        run.keep_stage_report("promote", report, seconds=0.0)
        epochs.append(epoch)
        if promoted:
            with open_backends(settings) as backends:
                current = current_release(backends.catalog)
                promote(
                    backends, space=epoch.space, epoch=1, foundation="", downstream=str(number), actor="test",
                    reason="", instead_of=current.id if current else None,
                )  # fmt: skip
    newest = publish_epoch(tmp_path, space="space-next")
    deliver_here(tmp_path, newest, settings)
    RunDirectory(settings.runs / "run-0").make_latest()
    damaged = settings.runs / "run-damaged" / "stages"
    damaged.mkdir(parents=True)
    for stage, content in (("promote", "{}"), ("deliver", "{")):
        (damaged / f"{stage}.json").write_text(content)  # another run's, no reason to fail this one
    with open_backends(settings) as backends:
        retired = retire_old(backends, settings.runs, (newest.space, newest.epoch), 3)
        assert retired == [("space-0", 1), ("space-1", 1), ("space-2", 1)]
        assert retire_old(backends, settings.runs, (newest.space, newest.epoch), 3) == []
        expired = expire_old(backends, settings.runs, (newest.space, newest.epoch), 3)
        assert expired == retired, "each is its space's only epoch"
        assert expire_old(backends, settings.runs, (newest.space, newest.epoch), 3) == []
        usable = [one.space for one in (*epochs, newest) if not is_withdrawn(backends, one)]
        assert usable == ["space-3", "space-4", "space-next"]
        for store in backends.stores.values():
            held = [one.space for one in (*epochs, newest) if store.get_many(one.space, 1, [1]) != [None]]
            assert held == ["space-3", "space-4", "space-next"]


def test_a_run_that_was_not_promoted_can_be_promoted_by_hand_while_its_epoch_is_of_the_newest(
    tmp_path: Path,
) -> None:
    """Each of these runs has a space of its own."""
    settings = settings_of(tmp_path)

    def end_run(name: str, *, promoted: bool) -> list[str]:
        """Deliver, perhaps promote, clean up; the spaces that are gone."""
        epoch = publish_epoch(tmp_path, space=name)
        deliver_here(tmp_path, epoch, settings)
        run = finish_stages(settings, f"run-{name}", epoch)
        report = Delivered(space=name, epoch=1)
        run.keep_stage_report("deliver", report, seconds=0.0)
        with open_backends(settings) as backends:
            if promoted:
                promote_by_hand(backends, name)
            run.keep_stage_report("promote", report, seconds=0.0)
            retired = retire_old(backends, settings.runs, (name, 1), 3)
            assert retired == expire_old(backends, settings.runs, (name, 1), 3)
        return [space for space, _ in retired]

    def promote_by_hand(backends: Backends, name: str) -> None:
        current = current_release(backends.catalog)
        promote(
            backends, space=name, epoch=1, foundation="", downstream=name, actor="test", reason="",
            instead_of=current.id if current else None,
        )  # fmt: skip

    assert end_run("a", promoted=True) == end_run("b", promoted=True) == end_run("c", promoted=True) == []
    assert end_run("frozen", promoted=False) == ["a"]
    assert end_run("d", promoted=True) == ["b"]
    with open_backends(settings) as backends:
        promote_by_hand(backends, "frozen")
    assert end_run("e", promoted=False) == ["c"]
    with open_backends(settings) as backends:
        reasons = {line.reason for line in backends.catalog.audit() if line.actor == "clean_up"}
        assert reasons == {
            "neither of the newest 3 nor needed by a release or a rollback",
            "no epoch of its space is of the newest 3 or needed by a release or a rollback",
        }
        with pytest.raises(EpochError, match=r"epoch 1 of b has expired \(no epoch of .*\): start a new run"):
            promote_by_hand(backends, "b")


def test_a_run_that_delivered_nothing_and_what_was_withdrawn_take_no_place(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    for name in ("a", "b", "older", "bad", "other"):
        epoch = publish_epoch(tmp_path if name != "other" else tmp_path / "another", space=name)
        if name not in ("older", "other"):
            deliver_here(tmp_path, epoch, settings)
        run = finish_stages(settings, f"run-{name}", epoch)
        report = Delivered(space=name, epoch=1, delivered=name != "older")
        run.keep_stage_report("deliver", report, seconds=0.0)
        run.keep_stage_report("promote", report, seconds=0.0)
    newest = publish_epoch(tmp_path, space="newest")
    deliver_here(tmp_path, newest, settings)
    with open_backends(settings) as backends:
        withdraw(backends.catalog, space="bad", epoch=1, actor="test", reason="bad")
        finished = finished_epochs(backends, settings.runs)
        assert kept_epochs(backends.catalog, finished, ("newest", 1), 3) == [
            ("newest", 1),
            ("b", 1),
            ("a", 1),
        ]


def is_withdrawn(backends: Backends, epoch: Epoch) -> bool:
    (found,) = backends.catalog.list_epochs(epoch.space)
    return found.withdrawn
