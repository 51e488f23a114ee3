"""What unit tests share."""

import hypothesis
import pytest
from training_data import settings_of

from vista.config import Settings

hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An embedded deployment of the file's own."""
    return settings_of(tmp_path_factory.mktemp("home"))
