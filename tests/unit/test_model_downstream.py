"""The downstream model and checkpoints."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from model_batches import CONFIG, SPEC, make_batch

from vista.config import ModelConfig
from vista.data.schema import Batch
from vista.errors import CheckpointError
from vista.model.checkpoint import CheckpointMeta, load, load_meta, save
from vista.model.downstream import Downstream
from vista.model.inputs import tensors
from vista.model.ranker import CoTrained, Ranker, SlotName, loss
from vista.runs import write_sealed

WITH_TAIL = CONFIG.model_copy(update={"recent_tail": 3})


def _foundation(config: ModelConfig = CONFIG) -> Ranker:
    torch.manual_seed(0)
    return Ranker(config, SPEC, "vista").eval()


def _meta(kind: SlotName | str) -> CheckpointMeta:
    return CheckpointMeta.model_validate(
        {"kind": kind, "config": CONFIG, "spec": SPEC, "space": "s", "trained_until_us": 5, "max_uih": 50}
    )


@pytest.mark.parametrize("config", [CONFIG, WITH_TAIL], ids=["no tail", "tail"])
def test_from_summaries_it_scores_like_the_foundation(config: ModelConfig) -> None:
    foundation = _foundation(config)
    downstream = Downstream.from_foundation(foundation).eval()
    batch = tensors(make_batch([9, 0, 40], [3, 2, 4]), "cpu")
    with torch.no_grad():
        found = downstream(batch, foundation.summarise(batch)).logits_CT
        assert torch.equal(found, foundation(batch).logits_CT)


def test_a_co_trained_foundation_s_summaries_score_without_hstu() -> None:
    """As the foundation does when HSTU tells it nothing. The reconstruction loss is there too."""
    torch.manual_seed(0)
    foundation = Ranker(CONFIG, SPEC, "vista_hstu").eval()
    downstream = Downstream.from_foundation(foundation).eval()
    batch = tensors(make_batch([9, 0, 40], [3, 2, 4]), "cpu")
    assert foundation.train()(batch).reconstruction_loss is not None
    assert isinstance(foundation.history, CoTrained)
    foundation.history.hstu.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    with torch.no_grad():
        found = downstream(batch, foundation.eval().summarise(batch)).logits_CT
        torch.testing.assert_close(found, foundation(batch).logits_CT)


def test_it_does_not_read_the_raw_history() -> None:
    downstream = Downstream.from_foundation(_foundation()).eval()
    summary = torch.randn(2, CONFIG.seeds, CONFIG.width)
    batches = [make_batch([9, 4], [3, 2]), make_batch([0, 0], [3, 2])]
    for name in ("user_row_B", "candidate_item_C", "candidate_category_C", "candidate_context_CK"):
        getattr(batches[1], name)[:] = getattr(batches[0], name)
    batches[1].candidate_dense_CF[:] = batches[0].candidate_dense_CF
    first, second = (downstream(tensors(batch, "cpu"), summary).logits_CT for batch in batches)
    assert torch.equal(first, second)


def test_of_the_raw_history_it_reads_the_recent_tail() -> None:
    downstream = Downstream.from_foundation(_foundation(WITH_TAIL)).eval()
    summary = torch.randn(2, CONFIG.seeds, CONFIG.width)
    batch = make_batch([9, 2], [3, 2])

    def logits(changed_row: int) -> torch.Tensor:
        changed = batch.uih_item_L.copy()
        changed[changed_row] = (changed[changed_row] + 1) % SPEC.num_items
        other = dataclasses.replace(batch, uih_item_L=changed)
        found: torch.Tensor = downstream(tensors(other, "cpu"), summary).logits_CT
        return found

    before = downstream(tensors(batch, "cpu"), summary).logits_CT
    assert torch.equal(logits(5), before)  # the fourth newest of user 0
    assert not torch.equal(logits(6)[:3], before[:3])
    assert torch.equal(logits(6)[3:], before[3:])


def _planted(seed: int) -> Batch:
    """The label says of which half of the items the user's newest event was."""
    batch = make_batch([6] * 40, [2] * 40, seed=seed)
    newest_C = batch.uih_item_L[batch.seq_offsets[1:] - 1].repeat(2)
    batch.labels_CT[:] = (newest_C < 25)[:, None]
    return batch


def test_the_tail_tells_what_a_stale_summary_cannot() -> None:
    accuracy = {}
    for config in (CONFIG, WITH_TAIL):
        torch.manual_seed(0)
        model, stale = Downstream(config, SPEC), torch.randn(40, CONFIG.seeds, CONFIG.width)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(60):
            batch = tensors(_planted(step), "cpu")
            loss(model(batch, stale), batch.labels_CT).backward()
            optimiser.step()
            optimiser.zero_grad()
        batch = tensors(_planted(10_000), "cpu")
        right = (model.eval()(batch, stale).logits_CT > 0) == (batch.labels_CT > 0.5)
        accuracy[config.recent_tail] = right.float().mean().item()
    assert accuracy[0] < 0.65  # a coin, on 80 rows
    assert accuracy[3] > 0.9


def test_its_weights_are_a_copy() -> None:
    foundation = _foundation()
    downstream = Downstream.from_foundation(foundation)
    with torch.no_grad():
        downstream.scorer.items.item.table.weight.add_(1)
    assert not torch.equal(
        downstream.scorer.items.item.table.weight, foundation.scorer.items.item.table.weight
    )


def test_the_fallback_is_the_summary_of_no_events() -> None:
    foundation = _foundation().train()
    downstream = Downstream.from_foundation(foundation)
    assert foundation.training
    summary = foundation.eval().summarise(tensors(make_batch([0, 7], [0, 0]), "cpu"))
    torch.testing.assert_close(downstream.fallback_summary_SD, summary[0])
    mended = downstream.with_fallback(summary + 1, torch.tensor([False, True]))
    torch.testing.assert_close(mended, torch.stack([summary[0], summary[1] + 1]))


@pytest.mark.parametrize("config", [CONFIG, WITH_TAIL], ids=["no tail", "tail"])
@pytest.mark.parametrize("kind", [*get_args(SlotName), "downstream"])
def test_a_checkpoint_brings_the_same_model_back(tmp_path: Path, kind: SlotName, config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Downstream(config, SPEC) if kind == "downstream" else Ranker(config, SPEC, kind)
    kept = save(tmp_path, model, _meta(kind).model_copy(update={"config": config}))
    random_state = torch.get_rng_state()
    loaded, meta = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert meta == kept
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weights in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weights)


def test_equal_weights_have_equal_digests(tmp_path: Path) -> None:
    digests = [save(tmp_path / name, _foundation(), _meta("vista")).digest for name in ("a", "b")]
    other = save(tmp_path / "c", Ranker(CONFIG, SPEC, "vista"), _meta("vista")).digest
    assert digests[0] == digests[1] != other


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, _foundation(), _meta("vista"))
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has sha256"):
        load(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, _foundation(), _meta("vista"))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="incomplete"):
        load(tmp_path)


def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save(tmp_path, _foundation(), _meta("vista"))
    meta = load_meta(tmp_path).model_dump(mode="json")
    meta["config"]["seeds"] += 1
    write_sealed(tmp_path / "model.json", meta)
    with pytest.raises(CheckpointError, match="does not fit the weights"):
        load(tmp_path)


@pytest.mark.parametrize("field", ["max_uih", "trained_until_us"])
def test_a_changed_number_is_refused(tmp_path: Path, field: str) -> None:
    """It would be believed: `trained_until_us` is what keeps later events from a training."""
    save(tmp_path, _foundation(), _meta("vista"))
    content = json.loads((tmp_path / "model.json").read_text())
    content[field] += 1
    (tmp_path / "model.json").write_text(json.dumps(content))
    for read in (load, load_meta):
        with pytest.raises(CheckpointError, match="its content is not that of its sha256"):
            read(tmp_path)


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    save(tmp_path, _foundation(), _meta("vista"))
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
        load(tmp_path)
