"""Without a GPU the Triton kernels run in Triton's interpreter: it must be chosen before triton is imported.

So this folder has a pytest process of its own (`make test`): beside others, triton may be there already.
"""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> str:
    """Where the Triton kernels run: a GPU, or the interpreter."""
    if torch.cuda.is_available():
        return "cuda"
    import triton

    assert triton.knobs.runtime.interpret, "triton was imported before the interpreter was chosen: " + (
        __doc__ or ""
    )
    return "cpu"
