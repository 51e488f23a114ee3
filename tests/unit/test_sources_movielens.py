"""MovieLens in its two layouts, AmazonElectronics_x1: each row's history is what its file says."""

import gzip
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from vista.config import DataConfig, SourceName
from vista.data.clocks import VIRTUAL_DAYS, VIRTUAL_START_US
from vista.data.rejects import Rejects
from vista.data.sources import SOURCES
from vista.errors import InputError, RejectedDataError


def events(
    source: SourceName, folder: Path, rejects: Rejects | None = None, **values: object
) -> pl.DataFrame:
    config = DataConfig(source=source, path=str(folder), **values)  # type: ignore[arg-type]
    return pl.DataFrame(pa.Table.from_batches(list(SOURCES[source].read(config, rejects or Rejects()))))


CSV = "userId,movieId,rating,timestamp\n1,5,4.0,978300019\n1,6,3.5,978300019\n2,5,0.5,978300020\n"
DAT = "1::5::4::978300019\n1::6::3.5::978300019\n2::5::.5::978300020\n"


@pytest.mark.parametrize("layout", ["csv", "csv.gz", "dat", "dat.gz"])
def test_both_layouts_give_the_same(tmp_path: Path, layout: str) -> None:
    ratings = (CSV if "csv" in layout else DAT).encode()
    movies = (
        'movieId,title,genres\n5,"Amélie, the (1999)",Children|Drama\n7,Odd,(no genres listed)\n'.encode()
        if "csv" in layout
        else "5::Amélie, the (1999)::Children's|Drama\n7::Odd::(no genres listed)\n".encode("latin-1")
    )
    wrapped = gzip.compress if layout.endswith("gz") else bytes
    (tmp_path / f"ratings.{layout}").write_bytes(wrapped(ratings))
    (tmp_path / f"movies.{layout}").write_bytes(wrapped(movies))
    found = events("movielens", tmp_path)
    columns = (
        "user_id",
        "item_id",
        "event_time_us",
        "action_mask",
        "value",
        "category_id",
        "context_year",
        "label_label",
    )
    assert found.select(columns).rows() == [
        (1, 5, 978_300_019_000_000, 3, 4.0, 3, 16, 1),
        (1, 6, 978_300_019_000_000, 1, 3.5, None, 0, 0),
        (2, 5, 978_300_020_000_000, 1, 0.5, 3, 16, 0),
    ]


def test_user_fraction_spreads_each_user_over_the_virtual_days(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(CSV)
    found = events("movielens", tmp_path, clock="user_fraction")
    half = VIRTUAL_DAYS * 86_400_000_000 // 2
    assert found["event_time_us"].to_list() == [VIRTUAL_START_US, VIRTUAL_START_US + half, VIRTUAL_START_US]
    assert found.drop("event_time_us").equals(events("movielens", tmp_path).drop("event_time_us"))


def test_wrong_folders_and_movies_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"grouplens\.org"):
        events("movielens", tmp_path)
    (tmp_path / "ratings.csv").write_text(CSV)
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n5,A\n")
    with pytest.raises(InputError, match=r"movies\.csv, line 2: expected movie, title and genres"):
        events("movielens", tmp_path)


def test_bad_ratings_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(CSV + "3,5,6,978300020\n3,5,,978300020\n3,x,5,978300020000\n")
    rejects = Rejects()
    assert events("movielens", tmp_path, rejects, max_reject_fraction=0.5).height == 3
    assert [reason.split(": ", 1)[1] for reason in rejects.first] == [
        "rating '6' is not 0.5 to 5",
        "rating '' is not 0.5 to 5",
        "movieId 'x' is not a whole number",
    ]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "rows", "users", "items", "liked"),
    [("ml-1m", 1_000_209, 6_040, 3_706, 0.5752), ("ml-latest-small", 100_836, 610, 9_724, 0.4818)],
)
def test_movielens_as_described(
    data_dir: Path, folder: str, rows: int, users: int, items: int, liked: float
) -> None:
    found = events("movielens", data_dir / folder)
    assert (found.height, found["user_id"].n_unique(), found["item_id"].n_unique()) == (rows, users, items)
    assert found["label_label"].mean() == pytest.approx(liked, abs=5e-5)
    assert found["category_id"].null_count() < rows // 1_000


AMAZON = "label,user_id,item_id,cate_id,item_history,cate_history\n"


def amazon_rows(lists: dict[int, list[tuple[int, int]]]) -> tuple[list[str], list[str]]:
    """The rows of train.csv and test.csv of users' (item, category) lists, with negatives 900, 901, ..."""
    parts: tuple[list[str], list[str]] = ([], [])
    for user, pairs in lists.items():
        for position in range(1, len(pairs)):
            history = ",".join("^".join(str(pair[side]) for pair in pairs[:position]) for side in (0, 1))
            part = parts[position == len(pairs) - 1]
            part.append(f"1,{user},{pairs[position][0]},{pairs[position][1]},{history}\n")
            part.append(f"0,{user},{900 + position},7,{history}\n")
    return parts


def history_of_every_candidate(found: pl.DataFrame) -> set[tuple[object, ...]]:
    """(label, user, item, earlier items and categories), by the rules of the event schema: what happened
    strictly before in time or, at the same time, in arrival."""
    rows = set()
    for (user,), mine in found.with_row_index("arrival").sort("event_time_us", "arrival").group_by("user_id"):
        events = mine.filter(~pl.col("candidate_only"))
        for label, item, time_us, arrival in mine.select(
            "label_label", "item_id", "event_time_us", "arrival"
        ).rows():
            before = events.filter(
                (pl.col("event_time_us") < time_us)
                | ((pl.col("event_time_us") == time_us) & (pl.col("arrival") < arrival))
            )
            if label != 255:
                rows.add((label, user, item, tuple(before["item_id"]), tuple(before["category_id"])))
    return rows


@pytest.mark.real_data
def test_amazon_histories_are_those_of_the_rows(data_dir: Path, tmp_path: Path) -> None:
    sample = pl.read_csv(data_dir / "amazon-electronics-sample" / "amazon_electronics_sample.csv")
    lists: dict[int, list[tuple[int, int]]] = {}
    for user, item, category in sample.select("user_id", "item_id", "cate_id").rows():
        lists.setdefault(user, []).append((item, category))
    train, test = amazon_rows(lists)
    (tmp_path / "train.csv").write_text(AMAZON + "".join(train))
    (tmp_path / "test.csv").write_text(AMAZON + "".join(test))
    rejects = Rejects()
    found = events("amazon_electronics", tmp_path, rejects)
    expected = set()
    for row in train + test:
        label, user, item, _, items, categories = row.strip().split(",")
        histories = (tuple(int(value) for value in text.split("^")) for text in (items, categories))
        expected.add((int(label), int(user), int(item), *histories))
    assert history_of_every_candidate(found) == expected
    assert (rejects.rows, rejects.rejected) == (len(train + test), 0)
    assert (~found["candidate_only"]).sum() == sum(len(pairs) for pairs in lists.values() if len(pairs) > 1)


def test_amazon_rows_that_contradict_their_user_are_rejected(tmp_path: Path) -> None:
    train, test = amazon_rows({1: [(5, 2), (6, 2), (7, 3), (8, 3)]})
    (tmp_path / "train.csv").write_text(
        AMAZON + "".join(train) + "1,1,9,2,6^5,2^2\n1,1,99,2,5,2\n0,1,9,2,5^x,2^2\n"
    )
    (tmp_path / "test.csv").write_text(AMAZON + "".join(test))
    rejects = Rejects()
    found = events("amazon_electronics", tmp_path, rejects, max_reject_fraction=0.5)
    assert found.height == 1 + 6
    assert [reason.split(", ", 1)[1] for reason in rejects.first] == [
        "line 8: item_history '5^x' holds something else than ids",
        "line 6: item_history is not the beginning of the user's longest one",
        "line 7: item 99 is not what the user's longest item_history holds there",
    ]
    with pytest.raises(InputError, match="reczoo"):
        events("amazon_electronics", tmp_path / "..")


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ("", InputError, "holds no rows"),
        ("1,1,2,3,5^x,1^1\n", RejectedDataError, "item_history '5\\^x' holds something else than ids"),
        ("2,1,2,3,5,1\n", RejectedDataError, "label '2' is neither 0 nor 1"),
    ],
)
def test_amazon_files_without_a_usable_row_are_explained(
    tmp_path: Path, rows: str, error: type[InputError], message: str
) -> None:
    (tmp_path / "train.csv").write_text(AMAZON + rows)
    with pytest.raises(error, match=message):
        events("amazon_electronics", tmp_path)
