"""The user's own files: what the mapping makes of them, and the draft that `describe-events` writes."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from vista.config import DataConfig
from vista.data.mapping import parse_mapping
from vista.data.rejects import Rejects
from vista.data.sources import SOURCES
from vista.data.sources.draft import describe_events
from vista.errors import InputError

MAPPING = """
user: who
item: what
time: when
time_unit: iso8601
label: "did == 'buy'"
candidates: "did != 'search'"
actions: {view: did == 'view', cheap: price < 10}
value: price
category: kind
context: {device: [phone, tablet], hour: 24}
string_ids: [user, category]
"""
ROWS = [
    ("who", "what", "when", "did", "price", "kind", "device", "hour", "note"),
    ("ann", "7", "2024-05-01T10:00:00Z", "view", "5", "shoes", "phone", "10", "x"),
    ("bob", "7", "2024-05-01T10:00:01Z", "buy", "", "hats", "tv", "24", "x"),
    ("ann", "8", "2024-05-01 10:00:02", "search", "50.5", "", "", "", ""),
    ("ann", "7", "2024-05-01T10:00:00Z", "view", "5", "shoes", "phone", "10", "a copy: note is not mapped"),
]
START_US = 1_714_557_600_000_000


def events(folder: Path, rejects: Rejects | None = None, **values: object) -> pl.DataFrame:
    config = DataConfig(source="events", path=str(folder), **values)  # type: ignore[arg-type]
    return pl.DataFrame(pa.Table.from_batches(list(SOURCES["events"].read(config, rejects or Rejects()))))


def csv(*rows: tuple[str, ...], separator: str = ",") -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


def test_every_key_of_the_mapping(tmp_path: Path) -> None:
    (tmp_path / "events.yaml").write_text(MAPPING)
    (tmp_path / "a.csv").write_text(csv(*ROWS))
    info = SOURCES["events"].describe(DataConfig(source="events", path=str(tmp_path)))
    assert info.actions == ("positive", "view", "cheap")
    assert [(column.name, column.cardinality) for column in info.context] == [("device", 3), ("hour", 25)]
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    rejects = Rejects(prepared / "rejects.jsonl")
    found = events(tmp_path, rejects)
    expected = {
        "user_id": [0, 1, 0],
        "item_id": [7, 7, 8],
        "event_time_us": [START_US, START_US + 1_000_000, START_US + 2_000_000],
        "action_mask": [0b110, 0b001, 0],
        "value": [5.0, None, 50.5],
        "category_id": [0, 1, None],
        "context_device": [1, 0, 0],
        "context_hour": [11, 0, 0],
        "label_label": [0, 1, 255],
    }
    assert found.select(list(expected)).to_dict(as_series=False) == expected
    assert (rejects.rows, rejects.rejected, rejects.duplicates) == (4, 0, 1)
    assert pl.read_parquet(prepared / "ids-user.parquet")["text"].to_list() == ["ann", "bob"]
    assert pl.read_parquet(prepared / "ids-category.parquet")["text"].to_list() == ["shoes", "hats"]


def test_parquet_and_gzip_give_the_same_as_csv(tmp_path: Path) -> None:
    base = "user: u\nitem: i\ntime: t\ntime_unit: {unit}\nlabel: l\nvalue: v\n"
    frame = pl.DataFrame(
        {
            "u": [3, 1, 3],
            "i": pl.Series([1, 2, 1], dtype=pl.UInt32),
            "t": [datetime(2024, 5, 1, 10, 0, second, tzinfo=UTC) for second in (2, 0, 1)],
            "l": [True, False, False],
            "v": [0.5, None, 2.0],
        }
    )
    found = []
    for name, unit in (("a.parquet", "iso8601"), ("a.csv.gz", "iso8601"), ("b.csv", "ms")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "events.yaml").write_text(base.format(unit=unit))
        if name.endswith("parquet"):
            frame.write_parquet(folder / name)
        else:
            text = frame if unit == "iso8601" else frame.with_columns(pl.col("t").dt.epoch("ms"))
            content = text.write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%:z").encode()
            (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        found.append(events(folder))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert found[0]["event_time_us"].to_list() == [START_US + second * 1_000_000 for second in (2, 0, 1)]


def test_many_files_are_one_stream_without_copies(tmp_path: Path) -> None:
    (tmp_path / "events.yaml").write_text(
        "user: u\nitem: i\ntime: t\ntime_unit: s\nlabel: l\nfiles: '*/part-*.csv'\n"
    )
    for day in (2, 1):
        (tmp_path / f"day{day}").mkdir()
        rows = f"u,i,t,l\n{day},5,1700000000,1\n9,9,1700000000,0\n"
        (tmp_path / f"day{day}" / "part-0.csv").write_text(rows)
    rejects = Rejects()
    assert events(tmp_path, rejects)["user_id"].to_list() == [1, 9, 2]
    assert rejects.duplicates == 1


def test_positives_alone_need_negatives(tmp_path: Path) -> None:
    (tmp_path / "events.yaml").write_text("user: u\nitem: i\ntime: t\ntime_unit: s\nlabel: i >= 0\n")
    (tmp_path / "a.csv").write_text("u,i,t\n1,5,1700000000\n2,6,1700000000\n")
    with pytest.raises(InputError, match=r"is 1 in all 2 rows.* write `negatives_per_positive: 4`"):
        events(tmp_path)
    base = "user: u\nitem: i\ntime: t\ntime_unit: s\nnegatives_per_positive: 2\n"
    for label in ("", "label: i >= 0\n"):
        (tmp_path / "events.yaml").write_text(base + label)
        assert events(tmp_path)["label_label"].to_list() == [1, 1]
        config = DataConfig(source="events", path=str(tmp_path))
        assert SOURCES["events"].describe(config).negatives_per_positive == 2
    (tmp_path / "events.yaml").write_text(base + "label: i < 0\n")
    with pytest.raises(InputError, match="is 0 in all 2 rows"):
        events(tmp_path)


@pytest.mark.parametrize(
    ("columns", "values"),
    [("user,item,ts", ""), ("user,item,ts,clicked", ",1"), ("user,item,ts,event", ",purchase")],
)
def test_positives_alone_are_drafted_with_negatives(tmp_path: Path, columns: str, values: str) -> None:
    rows = "".join(f"{row % 7},{row % 5},{1_700_000_000 + 9_000 * row}{values}\n" for row in range(50))
    (tmp_path / "a.csv").write_text(f"{columns}\n{rows}")
    text = describe_events(str(tmp_path))
    mapping = parse_mapping(text.encode(), "draft")
    assert (mapping.label, mapping.negatives_per_positive) == ("", 4)
    assert "No column says what was shown in vain" in text
    assert "It would be accepted." in text


def test_reasons_of_rejects(tmp_path: Path) -> None:
    (tmp_path / "events.yaml").write_text(MAPPING)
    good = ROWS[1]
    variants = {
        (0, ""): "user is empty",
        (1, "seven"): "item 'seven' is not a whole number: if these ids are text, write string_ids: [item]",
        (1, " 7"): "item ' 7' has blanks around it: remove them",
        (1, "-7"): "item '-7' is negative: ids start at 0",
        (2, "1714557600"): "time '1714557600' is not in unit iso8601: it looks like time_unit: s",
        (3, ""): "candidates: did is empty",
        (4, "cheap"): "actions: cheap: price 'cheap' is not a number",
        (4, "nan"): "actions: cheap: price 'nan' is not a number",
    }
    bad = [
        tuple(value if place == spot else old for place, old in enumerate(good)) for spot, value in variants
    ]
    (tmp_path / "a.csv").write_text(csv(ROWS[0], *bad, *ROWS[1:3]))
    rejects = Rejects(tmp_path / "rejects.jsonl")
    assert events(tmp_path, rejects, max_reject_fraction=1.0).height == 2
    kept = pl.read_ndjson(tmp_path / "rejects.jsonl")
    assert kept["reason"].to_list() == list(variants.values())
    assert kept["line"].to_list() == list(range(2, 10))


def test_wrong_columns_are_found_before_any_row_is_read(tmp_path: Path) -> None:
    (tmp_path / "events.yaml").write_text(MAPPING.replace("what", "waht"))
    with pytest.raises(InputError, match=r"holds no file that matches \*\.csv or"):
        events(tmp_path)
    (tmp_path / "a.csv").write_text(csv(*ROWS))
    with pytest.raises(
        InputError, match=r"events\.yaml: item: a\.csv has no column 'waht'. Did you mean 'what'"
    ):
        events(tmp_path)
    frame = pl.DataFrame({"who": ["a"], "what": [1], "when": [datetime(2024, 5, 1)], "did": ["buy"]})
    frame.write_parquet(tmp_path / "a.parquet")
    mapping = "user: who\nitem: what\ntime: when\ntime_unit: s\nlabel: did == 'buy'\n"
    (tmp_path / "events.yaml").write_text(mapping + "files: a.parquet\nstring_ids: [user]\n")
    with pytest.raises(InputError, match="'when' holds timestamps, not numbers: write time_unit: iso8601"):
        events(tmp_path)


def test_the_draft_fits_its_files(tmp_path: Path) -> None:
    header = ("Customer_ID", "sku", "moment", "Event_Type", "price", "in stock", "note")
    rows = [
        (
            f"c{row % 7}",
            f"s-{row}",
            f"2024-05-{1 + row % 20:02d} 10:00:00",
            ("view", "purchase")[row % 2],
            "1.5",
            "true",
            "x",
        )
        for row in range(40)
    ]
    (tmp_path / "shop.csv").write_text(csv(header, *rows, separator=";"))
    text = describe_events(str(tmp_path))
    mapping = parse_mapping(text.encode(), "draft")
    assert (mapping.user, mapping.item, mapping.time, mapping.time_unit) == (
        "Customer_ID",
        "sku",
        "moment",
        "iso8601",
    )
    assert (mapping.label, mapping.value, mapping.separator) == ("Event_Type == 'purchase'", "price", ";")
    assert mapping.actions == {"in_stock": "`in stock`", "view": "Event_Type == 'view'"}
    assert mapping.string_ids == ("user", "item")
    assert "# 40 rows read, 0 rejected, 0 copies dropped." in text
    assert "# It would be accepted." in text
    (tmp_path / "events.yaml").write_text(text)
    assert events(tmp_path).height == 40


def test_the_draft_shows_what_would_be_rejected(tmp_path: Path) -> None:
    good = "".join(f"{row},{row},{1_700_000_000 + row},{row % 2}\n" for row in range(50))
    (tmp_path / "a.csv").write_text("user,item,ts,clicked\n" + good + "-1,5,1700000000,1\n")
    text = describe_events(str(tmp_path))
    assert "#   a.csv, line 52: user '-1' is negative: ids start at 0" in text
    assert "# It would be refused: more than 1% of the rows would be rejected." in text
    (tmp_path / "mine.yaml").write_text("user: user\nitem: item\ntime: ts\ntime_unit: ms\nlabel: clicked\n")
    text = describe_events(str(tmp_path))
    assert text.startswith("# The mapping in mine.yaml stands as it is.")
    assert "51 rejected" in text
    assert "it looks like time_unit: s" in text


@pytest.mark.parametrize(
    ("values", "actions"),
    [
        (["1", "2", "3"], {"1": "action == 1", "2": "action == 2", "3": "action == 3"}),
        (["01", "2"], {"01": "action == '01'", "2": "action == '2'"}),
        ([1, 2], {"1": "action == 1", "2": "action == 2"}),
        ([1.0, 2.5], {"1": "action == 1", "2_5": "action == 2.5"}),
        (
            ["on", "off", "null"],
            {"null": "action == 'null'", "off": "action == 'off'", "on": "action == 'on'"},
        ),
        (
            ["page:view", "cart: add", "add_to_cart", "add to cart", "positive"],
            {
                "add_to_cart": "action == 'add to cart'",
                "add_to_cart_2": "action == 'add_to_cart'",
                "cart_add": "action == 'cart: add'",
                "page_view": "action == 'page:view'",
                "positive_2": "action == 'positive'",
            },
        ),
    ],
)
def test_drafted_actions_are_words(tmp_path: Path, values: list[object], actions: dict[str, str]) -> None:
    rows = [values[row % len(values)] for row in range(60)]
    frame = pl.DataFrame(
        {
            "user": range(60),
            "item": range(60),
            "ts": range(1_700_000_000, 1_700_600_000, 10_000),
            "clicked": [0, 1] * 30,
            "action": rows,
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    text = describe_events(str(tmp_path))
    assert parse_mapping(text.encode(), "draft").actions == actions
    assert "It would be accepted." in text


@pytest.mark.parametrize(
    ("columns", "values", "label"),
    [
        ("clicked", ("no", "yes"), "clicked == 'yes'"),
        ("clicked", ("0", ""), "clicked"),  # refused by the trial, with the line
        ("clicked", ("1", ""), "clicked"),
        ("clicked", ("NULL", "NaN"), "CHANGE_ME"),
        ("label,clicked", ("1,0", "1,1"), "clicked"),
        ("Is Click", ("0", "1"), "`Is Click`"),
    ],
)
def test_a_label_that_is_not_plain_is_not_taken_for_none(
    tmp_path: Path, columns: str, values: tuple[str, str], label: str
) -> None:
    rows = "".join(
        f"{row % 7},{row % 5},{1_700_000_000 + 9_000 * row},{values[row % 2]}\n" for row in range(50)
    )
    (tmp_path / "a.csv").write_text(f"user,item,ts,{columns}\n{rows}")
    text = describe_events(str(tmp_path))
    mapping = parse_mapping(text.encode(), "draft")
    assert (mapping.label, mapping.negatives_per_positive) == (label, 0)
    assert ("It would be refused" in text) == (label == "CHANGE_ME" or values[1] == "")


def test_a_listed_value_that_no_row_holds_is_named_with_those_that_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If no row holds any it is refused."""
    kinds = ("yes", "yes", "no", "01", "02", "03", "04", "")
    rows = [f"{n},{n},{1_700_000_000 + n * 9_000},{n % 2},{kinds[n % 8]}" for n in range(80)]
    (tmp_path / "a.csv").write_text("\n".join(["u,i,t,y,kind", *rows]) + "\n")
    base = "user: u\nitem: i\ntime: t\ntime_unit: s\nlabel: y\n"
    message = (
        r"events\.yaml: context: kind: no row holds 'Yes' or '1'\. The column holds 'yes', '01', '02', '03', "
        "'04': list its values as they are there, or leave it out"
    )
    (tmp_path / "events.yaml").write_text(base + "context: {kind: ['Yes', 01]}\n")
    with pytest.raises(InputError, match=message):
        events(tmp_path)
    assert "# It would be refused: events.yaml: context: kind: no row holds" in describe_events(str(tmp_path))
    (tmp_path / "events.yaml").write_text(
        base + "context: {kind: ['no', 'YES'], u: 8}\nactions: {buy: kind == 'YES', agree: kind == 'yes'}\n"
    )
    said = describe_events(str(tmp_path)).splitlines()[3:]
    warning = (
        "events.yaml: context: kind: no row holds 'YES'. The column holds, not listed, 'yes', '01', "
        "'02', '03', '04': list values as they are there"
    )
    assert [record.getMessage() for record in caplog.records] == [warning]
    assert said == [
        "# actions: buy is set in 0 of 80 rows.",
        "# actions: agree is set in 20 of 80 rows.",
        "# context: kind holds a listed value in 10 of 80 rows.",
        "# context: u holds 0 .. 7 in 8 of 80 rows.",
        "# It would be accepted.",
    ]


@pytest.mark.parametrize("listed", ["[1, 2]", "[1.0, 2.0]", "['1', '2']"])
def test_whole_floats_are_listed_as_whole_numbers(tmp_path: Path, listed: str) -> None:
    numbers = {
        "u": [1, 2, 3, 4],
        "i": [1, 2, 3, 4],
        "t": range(1_700_000_000, 1_700_000_004),
        "y": [0, 1] * 2,
    }
    frame = pl.DataFrame(numbers | {"tier": [1.0, 2.0, None, 2.5]})
    frame.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "events.yaml").write_text(
        f"user: u\nitem: i\ntime: t\ntime_unit: s\nlabel: y\ncontext: {{tier: {listed}}}\n"
    )
    assert events(tmp_path)["context_tier"].to_list() == [1, 2, 0, 0]


def test_the_trial_counts_days(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "user,item,ts,clicked\n" + "".join(f"1,{n},{1_700_000_000 + n},{n % 2}\n" for n in range(9))
    )
    assert "It would be refused: labels on 1 days; at least 3 are needed" in describe_events(str(tmp_path))


def test_a_draft_of_rows_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("# export of today\nuser,item,ts\n1,2,3\n")
    with pytest.raises(InputError, match=r"no row of a\.csv can be read: a\.csv, line 2: has 3 fields"):
        describe_events(str(tmp_path))


def test_a_draft_without_an_answer_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \.csv"):
        describe_events(str(tmp_path))
    (tmp_path / "a.csv").write_text("a,b\nx,y\n")
    text = describe_events(str(tmp_path))
    assert parse_mapping(text.encode(), "draft").user == "CHANGE_ME"
    assert "It would be refused: this draft: user: a.csv has no column 'CHANGE_ME'. There are: a, b" in text
