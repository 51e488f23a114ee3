"""KuaiRand: the original layout, earlier history, and on the real files the figures of their description."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from vista.config import DataConfig
from vista.data.rejects import Rejects
from vista.data.schema import DAY_US, EVENT_SCHEMA
from vista.data.sources import SOURCES
from vista.data.sources.kuairand import ACTIONS, INFO
from vista.errors import InputError, RejectedDataError

HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
NOON_MS = 1_651_377_600_000  # 2022-05-01 04:00 UTC, noon in Beijing
DAY_OFFSET_S = 8 * 3_600


def line(user: int, video: int, time_ms: int, click: int = 0, like: int = 0, tab: int = 1) -> str:
    return f"{user},{video},20220501,1200,{time_ms},{click},{like},0,0,0,0,{click},1500,20000,0,0,0,0,{tab}\n"


def events(folder: Path, rejects: Rejects | None = None, **values: object) -> pl.DataFrame:
    config = DataConfig(source="kuairand", path=str(folder), day_offset_s=DAY_OFFSET_S, **values)  # type: ignore[arg-type]
    batches = list(SOURCES["kuairand"].read(config, rejects or Rejects()))
    return pl.DataFrame(pa.Table.from_batches(batches))


def bits(*names: str) -> int:
    return sum(1 << ACTIONS.index(name) for name in names)


def test_original_layout_in_a_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    later = (
        HEADER + line(1, 10, NOON_MS + 5_000, click=1, tab=14) + line(1, 10, NOON_MS + 5_000, click=1, tab=14)
    )
    (data / "log_standard_4_22_to_5_08_1k.csv").write_text(later)
    (data / "log_standard_4_08_to_4_21_1k.csv").write_text(HEADER + line(2, 11, NOON_MS, like=1, tab=99))
    (data / "log_random_4_22_to_5_08_1k.csv").write_text(HEADER + line(3, 12, NOON_MS))
    videos = 'video_id,author_id,video_type,tag\n10,7,NORMAL,"39,68"\n12,7,NORMAL,\n13,8,AD,5\n'
    (data / "video_features_basic_1k.csv.gz").write_bytes(gzip.compress(videos.encode()))
    rejects = Rejects()
    found = events(tmp_path, rejects)
    expected = pl.DataFrame(
        {
            "user_id": [2, 1],
            "item_id": [11, 10],
            "event_time_us": [NOON_MS * 1_000, NOON_MS * 1_000 + 5_000_000],
            "action_mask": [bits("is_like"), bits("is_click", "long_view")],
            "value": [1.5, 1.5],
            "category_id": [None, 39],
            "surface": [99, 14],
            "context_tab": [0, 15],
            "context_hour": [13, 13],
            "context_duration": [5, 5],
            "context_author": [0, 1],
            "label_is_click": [0, 1],
            "label_long_view": [0, 1],
            "label_is_like": [1, 0],
        }
    )
    assert found.select(expected.columns).rows() == expected.rows()
    assert (rejects.rows, rejects.rejected, rejects.duplicates) == (3, 0, 1)
    assert found.columns[: len(EVENT_SCHEMA.names)] == EVENT_SCHEMA.names


def test_earlier_history_ends_before_the_log(tmp_path: Path) -> None:
    (tmp_path / "log_standard_pure.csv").write_text(HEADER + line(1, 10, NOON_MS))
    (tmp_path / "user_history_last50.csv").write_text(
        "user_id,history_len,last_time_ms,watch_seq,like_seq,long_watch_seq\n"
        f"1,9,{NOON_MS + 77},5^6^5,5,6^5\n"  # last_time_ms is after the first logged event
        f"2,1,{NOON_MS - 50_000},8,,\n"
    )
    found = events(tmp_path)
    first = NOON_MS * 1_000
    assert found.select("user_id", "item_id", "event_time_us", "action_mask", "label_is_click").rows() == [
        (1, 5, first - 3_000_000, bits("source"), 255),
        (1, 6, first - 2_000_000, bits("source", "long_view"), 255),
        (1, 5, first - 1_000_000, bits("source", "is_like", "long_view"), 255),
        (2, 8, first - 50_000_000, bits("source"), 255),
        (1, 10, first, 0, 0),
    ]


def naive_alignment(watched: list[int], flagged: list[int]) -> list[bool]:
    left, found = list(flagged), []
    for item in reversed(watched):
        hit = bool(left) and left[-1] == item
        if hit:
            left.pop()
        found.append(hit)
    return found[::-1]


def test_flags_are_aligned_from_the_newest_as_a_loop_does(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows, expected = "", []
    for user in range(200):
        watched = random.integers(0, 4, random.integers(1, 12)).tolist()
        liked = [item for item in watched if random.random() < 0.4]
        rows += f"{user},1,{NOON_MS},{'^'.join(map(str, watched))},{'^'.join(map(str, liked))},\n"
        expected += naive_alignment(watched, liked)
    (tmp_path / "log_standard_pure.csv").write_text(HEADER + line(900, 10, NOON_MS))
    header = "user_id,history_len,last_time_ms,watch_seq,like_seq,long_watch_seq\n"
    (tmp_path / "user_history_last50.csv").write_text(header + rows)
    found = events(tmp_path).filter(pl.col("user_id") < 900)
    assert ((found["action_mask"] & bits("is_like")) > 0).to_list() == expected


def test_bad_rows_are_rejected_with_their_reason(tmp_path: Path) -> None:
    good = "".join(line(1, video, NOON_MS + video) for video in range(400))
    bad = line(-1, 2, NOON_MS) + line(1, 2, NOON_MS // 1_000) + line(1, 2, NOON_MS, click=3)
    (tmp_path / "log_standard_pure.csv").write_text(HEADER + bad + good)
    rejects = Rejects()
    assert events(tmp_path, rejects).height == 400
    assert [reason.split(", ", 1)[1] for reason in rejects.first] == [
        "line 2: user_id '-1' is negative: ids start at 0",
        "line 3: time '1651377600' in unit ms is the year 1970: it looks like time_unit: s",
        "line 4: is_click '3' is neither 0 nor 1",
    ]
    with pytest.raises(RejectedDataError, match="3 of 403 rows"):
        events(tmp_path, max_reject_fraction=0.001)


def test_absent_data_say_where_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kuairand\.com"):
        events(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        events(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["log_standard_pure", "user_history_last50", "video_features_basic_pure"])
@pytest.mark.parametrize("other", ["{}.csv.gz", "data/{}.csv", "data/{}.csv.gz"])
def test_a_file_that_is_there_twice_is_refused(tmp_path: Path, name: str, other: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "log_standard_pure.csv").write_text(HEADER + line(1, 10, NOON_MS))
    for file in (f"{name}.csv", other.format(name)):
        (tmp_path / file).write_text("whatever\n")
    both = sorted([f"{name}.csv", other.format(name)])
    with pytest.raises(InputError, match=f"^{both[0]} and {both[1]} are one file of KuaiRand: remove one"):
        events(tmp_path)


def test_a_log_without_a_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "log_standard_pure.csv").write_text(HEADER.replace("tab", "page") + line(1, 2, NOON_MS))
    with pytest.raises(InputError, match=r"log_standard_pure\.csv has no column 'tab'"):
        events(tmp_path)


@pytest.mark.real_data
def test_public_split_of_kuairand_pure(data_dir: Path) -> None:
    """Rows, copies, history and the split by `date`, as the data README states them."""
    rejects = Rejects()
    found = events(data_dir / "kuairand-pure", rejects)
    candidates = found.filter(pl.col("label_is_click") != 255)
    earlier = found.filter(pl.col("label_is_click") == 255)
    assert (rejects.rejected, rejects.duplicates, candidates.height) == (0, 5_460, 222_869)
    assert (earlier.height, earlier["user_id"].n_unique()) == (817_187, 26_469)
    date = candidates["source_date"]
    parts = [date <= 20_220_505, date == 20_220_506, date.is_in([20_220_507, 20_220_508])]
    assert [part.sum() for part in parts] == [180_384, 13_580, 28_905]
    rates = [candidates.filter(part)["label_is_click"].mean() for part in parts]
    assert rates == pytest.approx([0.4501, 0.4292, 0.4515], abs=5e-5)
    assert earlier.group_by("user_id").len()["len"].max() == 50
    assert all(
        found[f"context_{column.name}"].is_between(0, column.cardinality - 1).all() for column in INFO.context
    )


@pytest.mark.real_data
def test_history_of_kuairand_pure_is_before_the_log(data_dir: Path) -> None:
    found = events(data_dir / "kuairand-pure")
    ends = found.group_by("user_id").agg(
        pl.col("event_time_us").filter(pl.col("source_date") == 0).max().alias("earlier"),
        pl.col("event_time_us").filter(pl.col("source_date") > 0).min().alias("logged"),
        pl.len(),
    )
    assert (ends["earlier"] < ends["logged"]).drop_nulls().all()
    assert ends["len"].max() == 191
    local_day = (found["event_time_us"] + DAY_OFFSET_S * 1_000_000) // DAY_US
    by_date = found["source_date"].filter(found["source_date"] > 0).cast(pl.String).str.to_date("%Y%m%d")
    day = by_date.cast(pl.Int32) - local_day.filter(found["source_date"] > 0)
    assert day.is_between(0, 1).all()  # listed on the day of its time, or (0.9%) on the next
    assert (day == 1).sum() == 2_020
