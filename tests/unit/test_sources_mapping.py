"""The mapping: what can be written, and what is said when it is wrong."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vista.data.mapping import Expression, StringIds, load_mapping, parse_mapping
from vista.errors import InputError

GOOD = "user: u\nitem: i\ntime: t\ntime_unit: s\nlabel: l\n"


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("l", ["1", "0", "true", "False", "1.0", "2", "yes", None], [1, 0, 1, 0, 1, None, None, None]),
        ("l == true", [True, False, None], [1, 0, None]),
        ("l != true", [True, False, None], [0, 1, None]),
        ("l == false", [True, False, None], [0, 1, None]),
        ("l != false", [True, False, None], [1, 0, None]),
        ("l >= 4", ["4", "3.9", "x", None], [1, 0, None, None]),
        ("l<-1.5e0", [-2.0, -1.5], [1, 0]),
        ("l >= 4", [5.0, float("nan")], [1, None]),
        ("l != 4", ["nan", "NaN", "5"], [None, None, 1]),
        ("l == 'buy'", ["buy", "Buy", None], [1, 0, None]),
        ('l != "it\'s"', ["it's", "is"], [0, 1]),
        ("`l` == '3'", [3, 4], [1, 0]),
    ],
)
def test_expressions(text: str, values: list[object], expected: list[int | None]) -> None:
    frame = pl.DataFrame({"l": values})
    assert frame.select(Expression.parse(text).truth(frame.schema)).to_series().to_list() == expected


@pytest.mark.parametrize(
    "text",
    ["", "a = 1", "a == b", "a == 'x", "1 < a < 2", "a and b", "a > 'x'", "a > true", "len(a) > 2 ", "a;b c"],
)
def test_nothing_else_is_an_expression(text: str) -> None:
    with pytest.raises(ValueError, match=r"expression|compared"):
        Expression.parse(text)


def outcome(text: str) -> str:
    try:
        return Expression.parse(text).column
    except ValueError as error:
        return str(error)


@given(st.text(max_size=30))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    assert outcome(text).strip("`") in text or repr(text) in outcome(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "lable: x\n", "there is no key 'lable'. Did you mean 'label'"),
        (GOOD.replace("label: l\n", ""), "the key 'label' is missing: add a line such as `label: clicked"),
        (GOOD.replace("label: l\n", ""), "add `negatives_per_positive: 4` instead"),
        *(
            (
                GOOD + f"negatives_per_positive: {value}\n",
                f"negatives_per_positive: it is {shown}: write how many",
            )
            for value, shown in (("-1", "-1"), ("0", "0"), ("true", "true"), ("1.5", "1.5"), ("1001", "1001"))
        ),
        (GOOD.replace("label: l\n", "negatives_per_positive: 0\n"), "1 to 1,000, or leave the line out"),
        (GOOD + "context:\n  d: true\n", "d has no values: list them"),
        (
            GOOD.replace("time_unit: s", "time_unit: sec"),
            "time_unit: Input should be 's', 'ms', 'us' or 'iso8601'",
        ),
        (GOOD.replace("label: l", "label: a = 1"), "'a = 1' is not an expression"),
        (
            GOOD.replace("label: l", "label: 1"),
            "label: YAML reads it as 1, not as text: write it between quotes",
        ),
        (GOOD.replace("user: u", "user: yes"), "user: YAML reads it as true, not as text: write it between"),
        (GOOD + "actions: {1: l, on: l}\n", "actions: 1: YAML reads it as 1, not as text: write it between"),
        (
            GOOD + "context: {d: [yes, no]}\n",
            "context: d: YAML reads a value as true: write it between quotes",
        ),
        (GOOD + "context: {d: [a, ~]}\n", "context: d: YAML reads a value as null: write it between quotes"),
        (GOOD + "actions:\n  buy: a == b\n", "actions: 'a == b' is not an expression"),
        (GOOD + "actions:\n  positive: a\n", "'positive' is there already"),
        (GOOD + "context:\n  d: []\n", "d has no values"),
        (GOOD + "files: ../*.csv\n", "must stay inside the data folder"),
        (GOOD + "separator: ab\n", "separator: 'ab' is not one plain character"),
        (GOOD + "separator: '\"'\n", "separator: a quote cannot separate columns"),
        (GOOD + 'separator: "\\n"\n', "is not one plain character"),
        (GOOD + "string_ids: [person]\n", "string_ids"),
        ("user: [", "m.yaml, line 1: not YAML"),
        ("- a\n- b\n", "m.yaml: write `key: value` lines"),
        ("just words", "m.yaml: write `key: value` lines"),
    ],
)
def test_wrong_mappings_say_what_to_write(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_mapping(text.encode(), "m.yaml")
    assert str(raised.value).startswith("m.yaml")
    assert message in str(raised.value)


def test_values_in_context_are_text() -> None:
    mapping = parse_mapping((GOOD + "context:\n  d: ['yes', 2, web]\n  h: 24\n").encode(), "m.yaml")
    assert mapping.context == {"d": ("yes", "2", "web"), "h": 24}
    assert mapping.columns() == {
        "u": "user",
        "i": "item",
        "t": "time",
        "l": "label",
        "d": "context",
        "h": "context",
    }


def test_a_folder_has_one_mapping(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="describe-events"):
        load_mapping(tmp_path)
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "empty.yaml").write_text("\n")  # what `describe-events DIR > DIR/empty.yaml` starts with
    assert load_mapping(tmp_path)[1] == "a.yaml"
    (tmp_path / "b.yml").write_text(GOOD)
    with pytest.raises(InputError, match=r"2 mappings \(a.yaml, b.yml\)"):
        load_mapping(tmp_path)


def test_string_ids_are_append_only(tmp_path: Path) -> None:
    ids = StringIds(tmp_path / "ids.parquet")
    assert ids.rows(pl.Series(["b", "a", None, "b"])).to_list() == [0, 1, None, 0]
    ids.save()
    again = StringIds(tmp_path / "ids.parquet")
    assert again.rows(pl.Series(["c", "a", "d", "b"])).to_list() == [2, 1, 3, 0]
    assert again.rows(pl.Series([None], dtype=pl.String)).to_list() == [None]
    assert len(again) == 4
