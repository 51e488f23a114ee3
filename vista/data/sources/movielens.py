"""MovieLens (grouplens.org): `ratings.dat` of 1M, `ratings.csv` of latest-small, 20M, 25M, 32M; also gzip.

Label: rating >= 4. With `movies.dat` or `movies.csv` beside it a movie's category is its first genre and its
year is context.
"""

import csv
import logging
import re
from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from vista.config import DataConfig
from vista.data.rejects import Rejects
from vista.data.schema import ContextColumn
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
from vista.data.sources.tables import TableFile, files_in, folder_of, read_table, whole_text
from vista.errors import InputError

log = logging.getLogger(__name__)

LIKED = 4.0
GENRES = (
    "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "IMAX", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""`category_id` is the place of the first genre in this list."""
FIRST_YEAR, YEARS_PER_BUCKET, YEAR_BUCKETS = 1920, 5, 24
COLUMNS = ("userId", "movieId", "rating", "timestamp")
DAT_HEADER = ("userId", "1", "movieId", "2", "rating", "3", "timestamp")
"""`::` read as two separators `:` with an empty field between."""
INFO = SourceInfo(
    actions=("rated", "like"),
    context=(ContextColumn(name="year", cardinality=YEAR_BUCKETS + 1),),
    tasks=("label",),
)


def describe(config: DataConfig) -> SourceInfo:
    return INFO


def read(config: DataConfig, rejects: Rejects) -> Iterator[pa.RecordBatch]:
    """All ratings in file order, without exact copies.

    Raises `InputError` before it reads any row if there is no file of ratings, or there are several.
    """
    folder = folder_of(config.path)
    ratings = files_in(folder, "ratings.dat", "ratings.dat.gz", "ratings.csv", "ratings.csv.gz")
    if len(ratings) != 1:
        found = ", ".join(file.name for file in ratings) or "none of them"
        raise InputError(
            f"{config.path!r} must hold one of ratings.dat, ratings.dat.gz, ratings.csv, ratings.csv.gz; it "
            f"holds {found}: get a data set from https://grouplens.org/datasets/movielens and name its "
            "folder with DATA_DIR= (--data-dir)"
        )
    movies = files_in(folder, "movies.dat", "movies.dat.gz", "movies.csv", "movies.csv.gz")
    batches = _batches(ratings[0], movies, rejects)
    return finished(batches, ratings[0].name, rejects, config.max_reject_fraction)


def _batches(file: TableFile, movie_files: list[TableFile], rejects: Rejects) -> Iterator[pa.RecordBatch]:
    movies = _movies(movie_files)
    seen = Seen()
    frames = (
        read_table(file, COLUMNS, rejects, separator=":", header=DAT_HEADER)
        if ".dat" in file.name
        else read_table(file, COLUMNS, rejects)
    )
    for frame in frames:
        rows = seen.without_copies(_checked(frame, file, rejects), COLUMNS, rejects)
        yield event_batch(_events(rows, movies), INFO)


def _checked(frame: pl.DataFrame, file: TableFile, rejects: Rejects) -> pl.DataFrame:
    parsed = frame.with_columns(
        whole_number(frame["userId"]).alias("user_id"),
        whole_number(frame["movieId"]).alias("item_id"),
        epoch_us(frame["timestamp"], "s").alias("event_time_us"),
        pl.col("rating").cast(pl.Float32, strict=False).alias("value"),
    )
    checks = [
        id_check("userId", "userId", pl.col("user_id")),
        id_check("movieId", "movieId", pl.col("item_id")),
        time_check("timestamp", pl.col("event_time_us"), "s"),
        Check(
            ~pl.col("value").is_between(0.5, 5.0), pl.format("rating {} is not 0.5 to 5", quoted("rating"))
        ),
    ]
    return usable(parsed, checks, file.name, rejects)


def _events(rows: pl.DataFrame, movies: pl.DataFrame) -> pl.DataFrame:
    liked = pl.col("value") >= LIKED
    return (
        rows.select("user_id", "item_id", "event_time_us", "value")
        .join(movies, on="item_id", how="left", maintain_order="left")
        .with_columns(
            bit_mask([pl.lit(True), liked]).alias("action_mask"),
            liked.cast(pl.UInt8).alias("label_label"),
            pl.col("context_year").fill_null(0),
        )
    )


def _movies(files: list[TableFile]) -> pl.DataFrame:
    """item_id, category_id, context_year."""
    if not files:
        log.warning("no movies.dat or movies.csv: movies have no genre and no year")
    rows = [_movie(*fields) for file in files for fields in _movie_fields(file)]
    schema = {"item_id": pl.Int64, "category_id": pl.Int64, "context_year": pl.Int32}
    return pl.DataFrame(rows, schema=schema, orient="row").unique(
        "item_id", keep="first", maintain_order=True
    )


def _movie_fields(file: TableFile) -> Iterator[tuple[int, str, str]]:
    """Movie, title and genres of each line. Raises `InputError` with the line that has not got them."""
    dat = ".dat" in file.name
    lines = whole_text(file, "latin-1" if dat else "utf-8").splitlines()
    rows = (line.split("::") for line in lines) if dat else csv.reader(lines[1:])
    for line, row in enumerate(rows, start=1 if dat else 2):
        if len(row) != 3 or not row[0].isdecimal():
            raise InputError(
                f"{file.name}, line {line}: expected movie, title and genres: mend or remove the line"
            )
        yield int(row[0]), row[1], row[2]


def _movie(movie: int, title: str, genres: str) -> tuple[int, int | None, int]:
    genre = genres.split("|")[0].replace("Children's", "Children")
    year = re.search(r"\((\d{4})\)\s*$", title)
    bucket = 1 + (int(year[1]) - FIRST_YEAR) // YEARS_PER_BUCKET if year else 0
    return movie, GENRES.index(genre) if genre in GENRES else None, max(0, min(bucket, YEAR_BUCKETS))
