"""The slot that every model of a user's history fills: VISTA, and the baselines beside it (section 5.1.2).

Shape suffixes: C candidates, I item features, E what the slot gives.
"""

from torch import Tensor, nn

from vista.model.inputs import Uih


class HistoryModule(nn.Module):
    """What a candidate is told about its user's history: (uih, candidates, whose they are) -> history_CE."""

    width: int
    """E, the width of what it gives."""

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        raise NotImplementedError
