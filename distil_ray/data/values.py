"""A value as it is stored -> its text, or the reason why it is none: bytes, JSON, columns of Parquet and Arrow."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distil_ray.data.tally import Reason

_TEXT_KINDS = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
)


def text_of_line(line: bytes, key: str) -> str | Reason:
    """The text of a JSON line, which stands under ``key``."""
    record = parse_json(line)
    if isinstance(record, Reason):
        return record
    if not isinstance(record, dict):
        return Reason.OTHER_TYPE
    return _text_of(record[key]) if key in record else Reason.NO_KEY


def parse_json(raw: bytes) -> Any:
    """Parse bytes that should be JSON; a `Reason` stands for those that are not."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    except (ValueError, RecursionError):  # not JSON, or brackets nested without end
        return Reason.NOT_JSON


def _decode_json(raw: bytes) -> str | Reason:
    value = parse_json(raw)
    return value if isinstance(value, Reason) else _text_of(value)


def _text_of(value: Any) -> str | Reason:
    """A value of JSON as text, or why it is none."""
    if value is None:
        return Reason.NULL
    return _usable(value) if isinstance(value, str) else Reason.OTHER_TYPE


def text_of_bytes(raw: bytes) -> str | Reason:
    """The text of bytes that should be UTF-8."""
    try:
        return _usable(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Reason.NOT_UTF8


def _usable(text: str) -> str | Reason:
    """The text, unless there is nothing to read or a lone surrogate: JSON can spell one, no tokenizer takes it."""
    if not text or text.isspace():
        return Reason.BLANK
    return text if text.isascii() or re.search("[\ud800-\udfff]", text) is None else Reason.SURROGATE


def is_json_column(schema: pq.ParquetSchema, column: str) -> bool:
    """Whether a Parquet column holds text in JSON's spelling: quoted, with escapes."""
    columns = (schema.column(index) for index in range(len(schema)))
    return any(leaf.path == column and leaf.logical_type.type == "JSON" for leaf in columns)


def is_text_type(value_type: pa.DataType) -> bool:
    """Whether a column of this type may hold text: strings, or bytes without a mark that says what they are."""
    if isinstance(value_type, pa.BaseExtensionType):
        return is_json_type(value_type) and is_text_type(value_type.storage_type)
    if pa.types.is_dictionary(value_type):
        return is_text_type(value_type.value_type)
    return any(is_kind(value_type) for is_kind in _TEXT_KINDS)


def is_json_type(value_type: pa.DataType) -> bool:
    """Whether this is Arrow's type for text in JSON's spelling."""
    return bool(getattr(value_type, "extension_name", None) == "arrow.json")


def column_texts(values: pa.Array, *, is_json: bool) -> Iterator[str | Reason]:
    """Yield each value of a column of a type of `is_text_type` as text, or why it is none."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    decode = _decode_json if is_json else text_of_bytes
    raw = values.cast(pa.large_binary())  # because Arrow does not check that a string column is UTF-8
    raw.validate(full=True)  # nor, in an IPC file, that its offsets lie within the data
    for value in raw.to_pylist():
        yield Reason.NULL if value is None else decode(value)
