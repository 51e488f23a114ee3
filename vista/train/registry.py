"""MLflow's registry: versions of both models, which of them serves, and what each was made from.

A downstream version names the foundation version and the table's epoch that it was trained on; the foundation
version names its downstream versions. Every version's description has the same as links for its page.
"""

import logging
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from vista.config import Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Release
from vista.delivery.release import current_release
from vista.train.mlflow_store import client, file_of, mapped
from vista.train.tracking import Tracked

LOG = logging.getLogger(__name__)

FOUNDATION, DOWNSTREAM = "vista-foundation", "vista-downstream"
"""Names of the registered models, and of the experiments with their runs."""

CANDIDATE, CHAMPION = "candidate", "champion"
"""The newest version, and the one that serves."""

CHECKPOINT, RELEASE = "vista.checkpoint", "vista.release"
MADE_FROM, MADE = "vista.foundation_version", "vista.downstream_version."
ARTIFACT = "checkpoint"


@mapped
def register(tracked: Tracked, model: str, tags: Mapping[str, str]) -> str:
    """The version of a model that a run's checkpoint is, made unless it exists; alias `candidate`."""
    from mlflow.exceptions import MlflowException

    store = client(tracked.url)
    if not store.search_registered_models(filter_string=f"name = '{model}'"):
        try:
            store.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    version = version_of(tracked.url, model, tracked.run_id)
    if version is None:
        source = f"{store.get_run(tracked.run_id).info.artifact_uri}/{ARTIFACT}"
        version = store.create_model_version(model, source, tracked.run_id, tags=dict(tags)).version
    store.set_registered_model_alias(model, CANDIDATE, version)
    return str(version)


@mapped
def version_of(url: str, model: str, run_id: str) -> str | None:
    """The version of a model that a run has made, None if it has made none."""
    found = client(url).search_model_versions(f"name = '{model}' and run_id = '{run_id}'")
    return str(found[0].version) if found else None


@mapped
def link(url: str, downstream_version: str, foundation_run_id: str, table: str) -> None:
    """Name a downstream version's foundation and the table's epoch, and the other way round. A foundation
    that was never registered has no version to name."""
    store = client(url)
    foundation_version = version_of(url, FOUNDATION, foundation_run_id)
    downstream = store.get_model_version(DOWNSTREAM, downstream_version)
    if foundation_version is None:
        store.update_model_version(DOWNSTREAM, downstream_version, f"trained on {table}")
        return
    foundation = store.get_model_version(FOUNDATION, foundation_version)
    store.set_model_version_tag(DOWNSTREAM, downstream_version, MADE_FROM, foundation_version)
    store.update_model_version(
        DOWNSTREAM, downstream_version, f"trained on {table}, which {_version_link(foundation)} made"
    )
    store.set_model_version_tag(FOUNDATION, foundation_version, MADE + downstream_version, downstream.run_id)
    made = sorted({*_made_versions(foundation), int(downstream_version)})
    named = ", ".join(_version_link(store.get_model_version(DOWNSTREAM, str(one))) for one in made)
    store.update_model_version(
        FOUNDATION, foundation_version, f"its summaries are in {table}; trained on them: {named}"
    )


@mapped
def follow_release(settings: Settings) -> None:
    """Give `champion` to the versions that the current release serves, and tag them with it; a release whose
    models this store does not know takes the alias away."""
    file = file_of(settings.mlflow_url)
    with closing(open_catalog(settings.catalog_url)) as catalog:
        release = current_release(catalog)
    if release is None or (file is not None and not file.exists()):  # nothing was tracked
        return
    for model, checkpoint in ((FOUNDATION, release.foundation), (DOWNSTREAM, release.downstream)):
        _crown(client(settings.mlflow_url), model, checkpoint, release)


def _crown(store: Any, model: str, checkpoint: str, release: Release) -> None:
    if not store.search_registered_models(filter_string=f"name = '{model}'"):
        return
    versions = store.search_model_versions(f"name = '{model}'")
    serving = [one for one in versions if one.tags.get(CHECKPOINT) == checkpoint]
    if not serving:
        LOG.warning("MLflow knows no version of %s at %s, which serves: no champion", model, checkpoint)
        store.delete_registered_model_alias(model, CHAMPION)
        return
    version = serving[0]
    store.set_registered_model_alias(model, CHAMPION, version.version)
    epoch = str(release.epoch)
    for name, text in ((RELEASE, release.id), ("vista.space", release.space), ("vista.epoch", epoch)):
        store.set_model_version_tag(model, version.version, name, text)
        store.set_tag(version.run_id, name, text)


def _made_versions(foundation: Any) -> list[int]:
    return [int(name.removeprefix(MADE)) for name in foundation.tags if name.startswith(MADE)]


def _version_link(version: Any) -> str:
    return f"[{version.name} {version.version}](#/models/{version.name}/versions/{version.version})"
