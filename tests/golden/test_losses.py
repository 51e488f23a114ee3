"""Golden losses: a tiny seeded training of every slot. A change of the model that was not meant shows here.

`make golden` (VISTA_GOLDEN=write) rewrites them; say in the commit why they moved.
"""

import json
import os
from pathlib import Path
from typing import get_args

import pytest
import torch
from model_batches import SPEC, make_batch

from vista.model.inputs import tensors
from vista.model.ranker import Ranker, SlotName, loss
from vista.recipes import smoke

GOLDEN = Path(__file__).parent / "losses.json"
SLOTS: tuple[SlotName, ...] = get_args(SlotName)


def _losses(slot: SlotName) -> list[float]:
    """Loss per candidate, and for VISTA the reconstruction's, of six steps with the smoke recipe's model."""
    torch.manual_seed(0)
    config = smoke("").model
    model = Ranker(config, SPEC, slot)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for step in range(6):
        batch = tensors(make_batch([9, 0, 40, 1], [3, 2, 4, 8], seed=step % 2), "cpu")
        output = model(batch)
        total = loss(output, batch.labels_CT) / len(batch.labels_CT)
        values.append(total.item())
        if output.reconstruction_loss is not None:
            values.append(output.reconstruction_loss.item())
            total = total + config.reconstruction_weight * output.reconstruction_loss
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return values


@pytest.fixture(scope="module")
def golden() -> dict[str, list[float]]:
    if os.environ.get("VISTA_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps({slot: _losses(slot) for slot in SLOTS}, indent=1) + "\n")
    found: dict[str, list[float]] = json.loads(GOLDEN.read_text())
    return found


@pytest.mark.parametrize("slot", SLOTS)
def test_losses_are_as_ever(golden: dict[str, list[float]], slot: SlotName) -> None:
    """1e-4: processors sum in other orders and Adam amplifies that; a real change is far larger."""
    assert _losses(slot) == pytest.approx(golden[slot], rel=1e-4)
