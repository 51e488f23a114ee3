"""What the clean-up retires, and what it leaves."""

from pathlib import Path

from delivery_samples import deliver_here, finish_stages, publish_epoch, settings_of

from vista.config import Frozen
from vista.delivery.interfaces import Epoch
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import current_release, promote
from vista.runs import RunDirectory
from vista.train.clean_up import expire_old, retire_old


class Delivered(Frozen):
    space: str
    epoch: int


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


def is_withdrawn(backends: Backends, epoch: Epoch) -> bool:
    (found,) = backends.catalog.list_epochs(epoch.space)
    return found.withdrawn
