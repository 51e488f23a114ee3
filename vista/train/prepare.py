"""Stage: the run's data set, in the run's `data` directory."""

from contextlib import closing
from pathlib import Path

from vista.config import RefreshConfig, Settings
from vista.data.prepare import PrepareReport, prepare_dataset
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Release
from vista.delivery.release import current_release
from vista.errors import InputError
from vista.recipes import recipe_of
from vista.runs import RunDirectory
from vista.train.vocabulary import Vocabulary


def prepare(config: RefreshConfig, settings: Settings) -> PrepareReport:
    """First stage of a refresh. A warm start keeps its space's value buckets: new edges would give the
    embeddings that it continues another meaning."""
    recipe = recipe_of(config)
    value_edges = None
    if config.warm_start:
        value_edges = Vocabulary.read(Path(release_to_continue(settings).foundation)).value_edges
    data = RunDirectory.open(settings.runs, config).data
    return prepare_dataset(recipe.data, data, recipe.windows, value_edges)


def release_to_continue(settings: Settings) -> Release:
    """What serves: its space is the one that a warm start goes on with. Raises `InputError`."""
    with closing(open_catalog(settings.catalog_url)) as catalog:
        release = current_release(catalog)
    if release is None:
        raise InputError(
            f"warm_start: nothing is released in {settings.catalog_url}: set VISTA_HOME to the deployment's "
            "folder, or run without warm_start first"
        )
    return release
