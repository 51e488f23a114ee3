"""Principal components of summaries: do users lie where an attribute of theirs would put them?

B users, S seeds, D width, P = S * D.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vista.errors import InputError
from vista.evaluate.refresh_report import SummaryMap

MAP_USERS = 1_000


def summary_map(
    summary_BSD: NDArray[np.floating],
    attribute: str,
    group: Sequence[str],
    groups: Sequence[str],
    *,
    ordered: bool = True,
    seed: int = 0,
) -> SummaryMap:
    """Project at most `MAP_USERS` users, drawn with `seed`, on their first two principal components.

    `group[b]` is the user's value of `attribute`, one of `groups`, which ascend if `ordered`. Raises
    `InputError` for fewer than 3 users, summaries that are not finite, or a group that `groups` does not
    list.
    """
    users = len(summary_BSD)
    if users < 3 or len(group) != users:
        raise InputError(
            f"a map needs at least 3 users and a group for each: {users} users, {len(group)} groups"
        )
    if unknown := set(group) - set(groups):
        raise InputError(f"groups {sorted(unknown)} are not among {list(groups)}: list them in that order")
    if not np.isfinite(summary_BSD).all():
        raise InputError(f"summaries of {attribute} hold NaN or infinities: the training diverged")
    rows = np.sort(np.random.default_rng(seed).permutation(users)[:MAP_USERS])
    flat_BP = summary_BSD[rows].reshape(len(rows), -1).astype(np.float64)
    left_BB, sizes_B, right_BP = np.linalg.svd(flat_BP - flat_BP.mean(axis=0), full_matrices=False)
    signs = np.sign(right_BP[np.arange(2), np.abs(right_BP[:2]).argmax(axis=1)])  # an SVD's are arbitrary
    points_B2 = left_BB[:, :2] * sizes_B[:2] * signs
    variance = max(float(np.square(sizes_B).sum()), np.finfo(np.float64).tiny)  # 0 if all users are equal
    return SummaryMap(
        attribute=attribute,
        x=tuple(points_B2[:, 0].tolist()),
        y=tuple(points_B2[:, 1].tolist()),
        group=tuple(group[row] for row in rows),
        groups=tuple(groups),
        ordered=ordered,
        explained=(float(sizes_B[0] ** 2 / variance), float(sizes_B[1] ** 2 / variance)),
    )
