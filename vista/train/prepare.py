"""Stage: the run's data set, in the run's `data` directory."""

from vista.config import RefreshConfig, Settings
from vista.data.prepare import PrepareReport, prepare_dataset
from vista.recipes import recipe_of
from vista.runs import RunDirectory
from vista.train.vocabulary import Vocabulary


def prepare(config: RefreshConfig, settings: Settings) -> PrepareReport:
    """First stage of a refresh. A warm start keeps its space's value buckets: new edges would give the
    embeddings that it continues another meaning. Raises `InputError` for one that no data make possible."""
    recipe = recipe_of(config)
    value_edges = None
    if config.warm_start:
        from vista.train.warm_start import possible_start  # imports torch

        value_edges = Vocabulary.read(possible_start(recipe, settings)).value_edges
    data = RunDirectory.open(settings.runs, config).data
    return prepare_dataset(recipe.data, data, recipe.windows, value_edges)
