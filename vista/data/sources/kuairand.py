"""KuaiRand (kuairand.com): short-video logs of Kuaishou in their original CSV layout, 1K, Pure or 27K.

Reads `log_standard_*.csv`, `video_features_basic_*.csv` and, where present, `user_history_*.csv` (each user's
earlier events without times), all plain or gzip, in the data folder or its `data/`. Not read: the log of
random recommendations (`log_random_*`) and statistics over the whole period, which would leak. A row's
`date` (`source_date` here, for public splits) is up to some hours after `time_ms`: at UTC+8 the two disagree
on the day of 0.9% of the rows.
Gao et al., KuaiRand, CIKM 2022.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vista.config import DataConfig
from vista.data.rejects import Rejects
from vista.data.schema import NO_LABEL, ContextColumn
from vista.data.sources import SourceInfo
from vista.data.sources.rows import (
    Check,
    Seen,
    bit_mask,
    epoch_us,
    event_batch,
    finished,
    id_check,
    quoted,
    time_check,
    usable,
    whole_number,
)
from vista.data.sources.tables import TableFile, columns_of, files_in, folder_of, read_table
from vista.errors import InputError

log = logging.getLogger(__name__)

TASKS = ("is_click", "long_view", "is_like")
FLAGS = (
    "is_click", "is_like", "long_view",
    "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter",
)  # fmt: skip
ACTIONS = (*FLAGS, "source")
"""`source` marks earlier history, whose clicks are unknown."""
NUMBERS = ("user_id", "video_id", "date", "play_time_ms", "duration_ms", "tab", *FLAGS)
DURATION_EDGES_MS = tuple(1_000 * edge for edge in (7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 600))
TABS = 15
AUTHORS = 4_095
"""Authors with the most videos, at least two; the others say no more than the item."""
INFO = SourceInfo(
    actions=ACTIONS,
    context=(
        ContextColumn(name="tab", cardinality=TABS + 1),
        ContextColumn(name="hour", cardinality=25),
        ContextColumn(name="duration", cardinality=len(DURATION_EDGES_MS) + 2),
        ContextColumn(name="author", cardinality=AUTHORS + 1),
    ),
    tasks=TASKS,
)


def describe(config: DataConfig) -> SourceInfo:
    return INFO


def read(config: DataConfig, rejects: Rejects) -> Iterator[pa.RecordBatch]:
    """Earlier history first, then the logs in file order, without exact copies of rows.

    Raises `InputError` before it reads any row if there is no log or a file is there twice.
    """
    folder = folder_of(config.path)
    logs = _files(folder, "log_standard_*")
    if not logs:
        raise InputError(
            f"no KuaiRand log in {config.path!r}: get KuaiRand-Pure or -1K from https://kuairand.com and "
            "name the folder that holds log_standard_*.csv (or .csv.gz), or its data/ folder, with DATA_DIR= "
            "(--data-dir)"
        )
    features, histories = _files(folder, "video_features_basic_*"), _files(folder, "user_history_*")
    batches = _batches(logs, histories, features, config, rejects)
    return finished(batches, config.path, rejects, config.max_reject_fraction)


def _files(folder: Path, name: str) -> list[TableFile]:
    """Raises `InputError` if a file is there twice: earlier history has no times to tell copies by."""
    files = files_in(
        folder, *(f"{place}{name}{end}" for place in ("", "data/") for end in (".csv", ".csv.gz"))
    )
    names: dict[str, str] = {}
    for file in files:
        first = names.setdefault(file.path.name.removesuffix(".gz"), file.name)
        if first != file.name:
            raise InputError(f"{first} and {file.name} are one file of KuaiRand: remove one of them")
    return files


def _batches(
    logs: list[TableFile],
    histories: list[TableFile],
    features: list[TableFile],
    config: DataConfig,
    rejects: Rejects,
) -> Iterator[pa.RecordBatch]:
    videos = _videos(features, rejects)
    if histories:
        first_us = _first_times(logs)
        for file in histories:
            for events in _earlier(file, first_us, rejects):
                yield event_batch(_with_videos(events, videos), INFO)
    seen = Seen()
    for file in logs:
        columns = list(dict.fromkeys(("time_ms", *NUMBERS, *columns_of(file))))  # copies are equal in all
        for frame in read_table(file, columns, rejects):
            rows = seen.without_copies(_checked(frame, file, rejects), columns, rejects)
            yield event_batch(_with_videos(_events(rows, config.day_offset_s), videos), INFO)


def _videos(files: list[TableFile], rejects: Rejects) -> pl.DataFrame:
    """item_id, category_id (the first tag) and context_author of the videos that the feature files name."""
    frames = [
        frame.select(
            whole_number(frame["video_id"]).alias("item_id"),
            pl.col("tag").str.split(",").list.first().cast(pl.Int64, strict=False).alias("category_id"),
            whole_number(frame["author_id"]).alias("author"),
        ).drop_nulls("item_id")
        for file in files
        for frame in read_table(file, ("video_id", "author_id", "tag"), Rejects())
    ]
    if not frames:
        log.warning("no video_features_basic_* file: videos have no category and no author")
        return pl.DataFrame(schema={"item_id": pl.Int64, "category_id": pl.Int64, "context_author": pl.Int64})
    videos = pl.concat(frames).unique("item_id", keep="first", maintain_order=True)
    authors = (
        videos.group_by("author").len().drop_nulls().filter(pl.col("len") > 1)
        .sort("len", "author", descending=[True, False]).head(AUTHORS)
        .with_row_index("context_author", offset=1)
    )  # fmt: skip
    return videos.join(authors, on="author", how="left").select("item_id", "category_id", "context_author")


def _with_videos(events: pl.DataFrame, videos: pl.DataFrame) -> pl.DataFrame:
    joined = events.join(videos, on="item_id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("context_author").fill_null(0))


def _checked(frame: pl.DataFrame, file: TableFile, rejects: Rejects) -> pl.DataFrame:
    """The rows with every column that is used as int64, and the others as they are."""
    numbers = frame.with_columns(
        epoch_us(frame["time_ms"], "ms").alias("event_time_us"),
        *(whole_number(frame[name]).alias(f"{name}_") for name in NUMBERS),
    )
    flags = [
        Check(
            ~pl.col(f"{name}_").is_between(0, 1), pl.format(f"{name} {{}} is neither 0 nor 1", quoted(name))
        )
        for name in FLAGS
    ]
    checks = [
        id_check("user_id", "user_id", pl.col("user_id_")),
        id_check("video_id", "video_id", pl.col("video_id_")),
        time_check("time_ms", pl.col("event_time_us"), "ms"),
        *flags,
    ]
    good = usable(numbers, checks, file.name, rejects)
    return good.drop(NUMBERS).rename({f"{name}_": name for name in NUMBERS})


def _events(rows: pl.DataFrame, day_offset_s: int) -> pl.DataFrame:
    hour = (pl.col("event_time_us") // 1_000_000 + day_offset_s) // 3_600 % 24
    tab = pl.col("tab")
    duration = pl.col("duration_ms")
    bucket = 1 + pl.sum_horizontal([duration >= edge for edge in DURATION_EDGES_MS])
    return rows.select(
        pl.col("user_id"),
        pl.col("video_id").alias("item_id"),
        "event_time_us",
        bit_mask([pl.col(name) == 1 for name in FLAGS]).alias("action_mask"),
        (pl.col("play_time_ms") / 1_000).alias("value"),
        tab.alias("surface"),
        pl.col("date").fill_null(0).alias("source_date"),
        pl.when(tab.is_between(0, TABS - 1)).then(tab + 1).otherwise(0).alias("context_tab"),
        (hour + 1).alias("context_hour"),
        pl.when(duration > 0).then(bucket).otherwise(0).alias("context_duration"),
        *(pl.col(task).alias(f"label_{task}") for task in TASKS),
    )


def _first_times(logs: list[TableFile]) -> pl.DataFrame:
    """user, first_us: each user's first logged time. Bad rows are rejected when the log itself is read."""
    checks = [time_check("time_ms", pl.col("us"), "ms"), id_check("user_id", "user_id", pl.col("user"))]
    parts = []
    for file in logs:
        for frame in read_table(file, ("user_id", "time_ms"), Rejects()):
            parsed = frame.with_columns(
                whole_number(frame["user_id"]).alias("user"), epoch_us(frame["time_ms"], "ms").alias("us")
            )
            good = usable(parsed, checks, file.name, Rejects())
            parts.append(good.group_by("user").agg(pl.col("us").min().alias("first_us")))
    return pl.concat(parts).group_by("user").agg(pl.col("first_us").min())


def _earlier(file: TableFile, first_us: pl.DataFrame, rejects: Rejects) -> Iterator[pl.DataFrame]:
    """Events of the earlier history: the i-th of n is n - 1 - i seconds before the last, which is at
    `last_time_ms` but at least one second before the user's first logged event."""
    columns = ("user_id", "last_time_ms", "watch_seq", "like_seq", "long_watch_seq")
    for frame in read_table(file, columns, rejects):
        parsed = frame.with_columns(
            whole_number(frame["user_id"]).alias("user"),
            epoch_us(frame["last_time_ms"], "ms").alias("last_us"),
            *(_items(name) for name in columns[2:]),
        )
        users = usable(parsed, _history_checks(), file.name, rejects)
        yield _unrolled(users.join(first_us, on="user", how="left", maintain_order="left"))


def _items(name: str) -> pl.Expr:
    return pl.col(name).fill_null("").str.split("^").list.eval(
        pl.element().filter(pl.element() != "").cast(pl.Int64, strict=False).fill_null(-1)
    ).alias(f"{name}_items")  # fmt: skip


def _history_checks() -> list[Check]:
    checks = [
        id_check("user_id", "user_id", pl.col("user")),
        time_check("last_time_ms", pl.col("last_us"), "ms"),
    ]
    for name in ("watch_seq", "like_seq", "long_watch_seq"):
        bad = (pl.col(f"{name}_items").list.min() < 0).fill_null(False)
        checks.append(Check(bad, pl.format(f"{name} {{}} holds something else than ids", quoted(name))))
    return checks


def _unrolled(users: pl.DataFrame) -> pl.DataFrame:
    lengths = users["watch_seq_items"].list.len().to_numpy().astype(np.int64)
    users = users.filter(pl.Series(lengths > 0))
    lengths = lengths[lengths > 0]
    ends = np.cumsum(lengths)
    items = users["watch_seq_items"].explode().to_numpy()
    liked = _aligned(items, ends, lengths, users["like_seq_items"])
    long_viewed = _aligned(items, ends, lengths, users["long_watch_seq_items"])
    before_first = pl.col("first_us") - 1_000_000
    last_us = users.select(pl.min_horizontal("last_us", before_first)).to_series().to_numpy()
    age_s = np.repeat(ends, lengths) - 1 - np.arange(len(items))
    mask = (
        (1 << ACTIONS.index("source"))
        | (liked.astype(np.int64) << ACTIONS.index("is_like"))
        | (long_viewed.astype(np.int64) << ACTIONS.index("long_view"))
    )
    events = pl.DataFrame(
        {
            "user_id": np.repeat(users["user"].to_numpy(), lengths),
            "item_id": items,
            "event_time_us": np.repeat(last_us, lengths) - age_s * 1_000_000,
            "action_mask": mask,
        }
    )
    contexts = [pl.lit(0).alias(f"context_{name}") for name in ("tab", "hour", "duration")]
    labels = [pl.lit(NO_LABEL).alias(f"label_{task}") for task in TASKS]
    return events.with_columns(*contexts, *labels, pl.lit(0).alias("source_date"))


def _aligned(
    items: NDArray[np.int64], ends: NDArray[np.int64], lengths: NDArray[np.int64], flagged: pl.Series
) -> NDArray[np.bool_]:
    """Which items of each user's list are those of the user's `flagged` list, a sub-sequence of it: matched
    greedily from the newest on. One step per position from the newest, all users at once."""
    flag_lengths = flagged.list.len().to_numpy().astype(np.int64)
    flag_items = np.append(flagged.list.explode(keep_nulls=False).to_numpy(), -1).astype(np.int64)
    next_flag = np.cumsum(flag_lengths) - 1
    left = flag_lengths.copy()
    matched = np.zeros(len(items), bool)
    for age in range(int(lengths.max(initial=0))):
        open_users = np.flatnonzero((lengths > age) & (left > 0))
        place = ends[open_users] - 1 - age
        hit = items[place] == flag_items[next_flag[open_users]]
        matched[place[hit]] = True
        next_flag[open_users[hit]] -= 1
        left[open_users[hit]] -= 1
    return matched
