"""How a user's own columns become events: the mapping, its expressions, and ids that are text.

A mapping is a small YAML file beside the data:

    user: customer
    item: product
    time: ts
    time_unit: s                        # s, ms, us or iso8601
    label: clicked                      # a column of 0 and 1, or: action == 'purchase', rating >= 4
    negatives_per_positive: 4           # instead of, or beside, a label: items drawn for each positive
    actions:                            # optional: what a history says of an event
      view: action == 'view'
    value: price                        # optional: a number of the event
    category: department                # optional: of the item
    context:                            # optional: known when the item is shown
      device: [phone, tablet]           # values in order; others are unknown
      hour: 24                          # or whole numbers 0 .. 23
    string_ids: [user, item]            # optional: which of user, item, category are text
    candidates: action != 'refund'      # optional: which rows have a label; the others are history only
    files: "2024/*.csv.gz"              # optional: default all .csv, .csv.gz and .parquet files
    separator: ";"                      # optional: default a comma
"""

import json
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import polars as pl
import pyarrow.compute
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator

from vista.config import Frozen
from vista.data.files import read_prepared
from vista.data.sources.tables import closest
from vista.errors import InputError

TimeUnit = Literal["s", "ms", "us", "iso8601"]
IdName = Literal["user", "item", "category"]
MAX_ACTIONS = 31
"""Bits of `action_mask`, less the one for a positive label."""

MAX_NEGATIVES = 1_000
MAX_CONTEXT_VALUES = 1_000_000

EXAMPLES = {
    "user": "user: user_id",
    "item": "item: item_id",
    "time": "time: timestamp",
    "time_unit": "time_unit: s",
    "label": "label: clicked   (or: label: rating >= 4)",
    "negatives_per_positive": "negatives_per_positive: 4",
}

QUOTES = "write it between quotes"

YES = ("1", "true", "True", "TRUE", "1.0")
NO = ("0", "false", "False", "FALSE", "0.0")

_EXPRESSION = re.compile(
    r"""\s*(?:`(?P<quoted>[^`]+)`|(?P<column>[\w.:-]+))\s*
    (?:(?P<op>==|!=|>=|<=|>|<)\s*
       (?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<text>'[^']*'|"[^"]*")|(?P<flag>true|false))
    )?\s*""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Expression:
    """`column`, or `column op constant`. Nothing else can be said, and nothing is evaluated as code."""

    column: str
    op: str = ""
    constant: float | str | bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `ValueError` with what can be written.

        >>> Expression.parse("rating >= 4")
        Expression(column='rating', op='>=', constant=4.0)
        >>> Expression.parse("`event type` == 'buy'")
        Expression(column='event type', op='==', constant='buy')
        >>> Expression.parse("clicked")
        Expression(column='clicked', op='', constant=True)
        """
        found = _EXPRESSION.fullmatch(text)
        if not found:
            raise ValueError(
                f"{text!r} is not an expression: write a column of 0 and 1, or column op constant, where op "
                "is == != >= <= > < and the constant a number, 'text' in quotes, true or false (a column "
                "whose name is not a plain word goes between backticks)"
            )
        column = found["quoted"] or found["column"]
        if found["op"] is None:
            return cls(column)
        if found["number"] is None and found["op"] not in ("==", "!="):
            raise ValueError(f"{text!r}: only numbers can be compared with {found['op']}; use == or !=")
        return cls(column, found["op"], _constant(found))

    def truth(self, schema: pl.Schema) -> pl.Expr:
        """1 or 0 per row (int8); null where the value is empty or of another kind than the constant."""
        if isinstance(self.constant, bool):
            truth = _flag(self.column, schema[self.column])
            return truth if (self.op != "!=") == self.constant else 1 - truth
        value: pl.Expr = pl.col(self.column)
        if isinstance(self.constant, str):
            value = value.cast(pl.String, strict=False)
        else:
            value = value.cast(pl.Float64, strict=False).fill_nan(None)  # polars: NaN is above every number
        constant = pl.lit(self.constant)
        compared = {
            "==": value == constant, "!=": value != constant, ">=": value >= constant,
            "<=": value <= constant, ">": value > constant, "<": value < constant,
        }  # fmt: skip
        return compared[self.op].cast(pl.Int8)

    @property
    def wants(self) -> str:
        """What a value of the column must be."""
        if isinstance(self.constant, bool):
            return "0, 1, true or false: compare it with something, such as == 'yes' or > 0"
        return "a number" if isinstance(self.constant, float) else "a text"


def _constant(found: re.Match[str]) -> float | str | bool:
    if found["number"] is not None:
        return float(found["number"])
    return found["flag"] == "true" if found["flag"] is not None else str(found["text"][1:-1])


def _flag(column: str, kind: pl.DataType) -> pl.Expr:
    if kind.is_numeric():
        number = pl.col(column)
        truth = pl.when(number == 1).then(1).when(number == 0).then(0)
    else:
        text = pl.col(column).cast(pl.String, strict=False)
        truth = pl.when(text.is_in(YES)).then(1).when(text.is_in(NO)).then(0)
    return truth.otherwise(None).cast(pl.Int8)


class Mapping(Frozen):
    """Which columns of the user's files mean what; see the top of this file."""

    user: str = Field(min_length=1)
    item: str = Field(min_length=1)
    time: str = Field(min_length=1)
    time_unit: TimeUnit
    label: str = ""
    negatives_per_positive: int = 0
    actions: dict[str, str] = Field({}, max_length=MAX_ACTIONS)
    value: str = ""
    category: str = ""
    context: dict[str, tuple[str, ...] | int] = Field({})
    string_ids: tuple[IdName, ...] = ()
    candidates: str = ""
    files: str = ""
    separator: str = ","

    @field_validator("negatives_per_positive", mode="before")
    @classmethod
    def _is_a_number_of_items(cls, number: Any) -> Any:
        if type(number) is not int or not 1 <= number <= MAX_NEGATIVES:
            raise ValueError(
                f"it is {_yaml_text(number)}: write how many items to draw for each positive, 1 to "
                f"{MAX_NEGATIVES:,}, or leave the line out"
            )
        return number

    @field_validator("label", "candidates")
    @classmethod
    def _is_expression(cls, text: str) -> str:
        if text:
            Expression.parse(text)
        return text

    @field_validator("actions")
    @classmethod
    def _are_actions(cls, actions: dict[str, str]) -> dict[str, str]:
        for name, text in actions.items():
            Expression.parse(text)
            if name == POSITIVE:
                raise ValueError(f"the action {POSITIVE!r} is there already (label 1): use another name")
        return actions

    @field_validator("context", mode="before")
    @classmethod
    def _as_text(cls, context: Any) -> Any:
        if not isinstance(context, dict):
            return context
        for name, values in context.items():
            for value in values if isinstance(values, list) else ():
                if isinstance(value, bool | None):
                    raise ValueError(f"{name}: YAML reads a value as {_yaml_text(value)}: {QUOTES}")
        return {name: _context_values(values) for name, values in context.items()}

    @field_validator("context")
    @classmethod
    def _has_values(cls, context: dict[str, tuple[str, ...] | int]) -> dict[str, tuple[str, ...] | int]:
        for name, values in context.items():
            if values in (0, ()) or (isinstance(values, int) and values < 0):
                raise ValueError(
                    f"{name} has no values: list them, or write how many whole numbers from 0 there are"
                )
            if isinstance(values, int) and values > MAX_CONTEXT_VALUES:
                raise ValueError(
                    f"{name} has {values:,} values, more than {MAX_CONTEXT_VALUES:,}: leave it out"
                )
        return context

    @field_validator("separator")
    @classmethod
    def _is_plain(cls, separator: str) -> str:
        if len(separator) != 1 or not (separator == "\t" or " " <= separator <= "~"):
            raise ValueError(f"{separator!r} is not one plain character: write it as ';' or \"\\t\"")
        if separator == '"':
            raise ValueError("a quote cannot separate columns: it is what fields are quoted with")
        return separator

    @field_validator("files")
    @classmethod
    def _is_inside(cls, pattern: str) -> str:
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise ValueError(f"{pattern!r} must stay inside the data folder")
        return pattern

    @model_validator(mode="after")
    def _context_is_not_the_label(self) -> Self:
        if self.label and (column := Expression.parse(self.label).column) in self.context:
            raise ValueError(
                f"context: the label is made of {column!r}: leave it out, or every model is told the answer"
            )
        return self

    @model_validator(mode="after")
    def _says_what_to_learn(self) -> Self:
        if not self.label and not self.negatives_per_positive:
            raise ValueError(
                f"the key 'label' is missing: add a line such as `{EXAMPLES['label']}`; if every row is "
                f"something that a user chose, add `{EXAMPLES['negatives_per_positive']}` instead"
            )
        return self

    def expressions(self) -> dict[str, Expression]:
        """Every expression by the key that holds it."""
        texts = {"label": self.label, "candidates": self.candidates}
        texts |= {f"actions: {name}": text for name, text in self.actions.items()}
        return {key: Expression.parse(text) for key, text in texts.items() if text}

    def columns(self) -> dict[str, str]:
        """Column -> the first key that names it, in the order of the keys."""
        pairs = [(self.user, "user"), (self.item, "item"), (self.time, "time")]
        pairs += [(expression.column, key) for key, expression in self.expressions().items()]
        pairs += [(self.value, "value"), (self.category, "category")]
        pairs += [(name, "context") for name in self.context]
        first: dict[str, str] = {}
        for column, key in pairs:
            if column:
                first.setdefault(column, key)
        return first


POSITIVE = "positive"
"""The first action bit of every event source: the row's label was 1."""


def _context_values(values: Any) -> Any:
    if isinstance(values, list):
        return [str(value) for value in values]
    return 0 if isinstance(values, bool) else values  # a truth value says of no values


def _yaml_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


def load_mapping(folder: Path) -> tuple[Mapping, str]:
    """The mapping in a data folder and its file's name.

    Raises `InputError` if there is none, more than one, or if it cannot be used: key, value and remedy.
    """
    found = mapping_files(folder)
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f"{folder} holds {len(found)} mappings ({names}): keep one .yaml file"
            if found
            else f"{folder} holds no mapping (a .yaml file that says what the columns mean): draft one with "
            f"`python -m vista describe-events {folder}` and save what it prints as {folder / 'events.yaml'}"
        )
    return parse_mapping(_content(found[0]), found[0].name), found[0].name


def mapping_files(folder: Path) -> list[Path]:
    """YAML files of a folder that hold something, by name."""
    paths = [path for ending in ("*.yaml", "*.yml") for path in folder.glob(ending)]
    return sorted(path for path in paths if path.is_file() and _content(path).strip())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror}): let this user read it") from error


def parse_mapping(text: bytes, name: str) -> Mapping:
    """Raises `InputError` that names the file, the key and the remedy."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not UTF-8 text"
        raise InputError(
            f"{name}{place}: not YAML ({problem}). Write `key: value` lines; put values with : # or quotes "
            "between double quotes, such as label: \"action == 'buy'\""
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{name}: write `key: value` lines, such as {EXAMPLES['user']}")
    try:
        return Mapping.model_validate({str(key): value for key, value in values.items()})
    except ValidationError as error:
        raise InputError(f"{name}: {_problem(error.errors()[0])}") from error


def _problem(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"there is no key {key!r}. {closest(key, list(Mapping.model_fields))}"
    if error["type"] == "missing":
        return f"the key {key!r} is missing: add a line such as `{EXAMPLES[key]}`"
    parts = [str(part) for part in error["loc"]]
    place = ": ".join(part for part in parts if not part.startswith(("tuple", "int", "[key]")))
    if error["type"] == "value_error":
        return f"{place}: {message}"
    if error["type"] == "string_type" and isinstance(error["input"], bool | int | float):
        return f"{place}: YAML reads it as {_yaml_text(error['input'])}, not as text: {QUOTES}"
    return f"{place}: {error['msg']} (it is {reprlib.repr(error['input'])[:80]})"


class StringIds:
    """A dictionary from text to 0, 1, 2 ... in order of first appearance; append-only: it starts from the
    file if that exists, and new texts get the next numbers."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        known = read_prepared(path)["text"].to_list() if path is not None and path.exists() else []
        self._rows: dict[str, int] = {text: row for row, text in enumerate(known)}

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, texts: pl.Series) -> pl.Series:
        """Numbers of texts; null for null."""
        encoded = pyarrow.compute.dictionary_encode(texts.rename("text").cast(pl.String).to_arrow())
        rows = self._rows
        codes: NDArray[np.int64] = np.fromiter(
            (rows.setdefault(text, len(rows)) for text in encoded.dictionary.to_pylist()), np.int64
        )
        places = pl.Series(encoded.indices).cast(pl.Int64)
        return pl.Series(codes).gather(places) if len(codes) else places

    def save(self) -> None:
        """Write the file, if there is one, in the order of the numbers."""
        if self._path is not None:
            pl.DataFrame({"text": list(self._rows)}, schema={"text": pl.String}).write_parquet(self._path)
