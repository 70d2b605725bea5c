"""The columns of an exported index, and what its Parquet schema tells of the whole: the one place that names them."""

import json
import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any

from ...errors import ExportError, MissingExtraError
from ...scan import Rules
from ...whitening import Whitening
from ..store import About

WIDEST = 1 << 17  # of a vector
LAYOUT = 2  # 1 without whitening
_KEY, _CHECKSUM_KEY = b"simclr_hub", b"simclr_hub.crc32"  # pages have checksums of their own, the schema has none
#: Details that are columns of their own, with their Arrow types; what else is known is JSON in `other`.
INFO = {"format": "string", "width": "int32", "height": "int32", "taken": "string", "camera": "string"}


@dataclass(frozen=True)
class Header:
    """What is told once for all rows.

    Attributes:
        about: what made the vectors.
        roots: the photo folders, as (path, state of the last listing); a row has its position here.
        separator: of the folders in paths.
        distinct: pairs of contents, as hexadecimal hashes, that a person called different pictures.
        photos: how many rows there are.
        whitening: what makes the column `vector` of the column `features`, the model's; None if there is only the one.
    """

    about: About
    roots: list[tuple[str, str]]
    separator: str
    distinct: list[tuple[str, str]]
    photos: int
    whitening: Whitening | None = None


def arrow() -> Any:
    """Load pyarrow and its Parquet module, not before they are needed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtraError("pyarrow", "parquet") from e
    return pyarrow


def schema(header: Header) -> Any:
    """The Arrow schema of an export."""
    pa = arrow()
    string, number = pa.string(), pa.float64()
    columns = [
        ("path", string),  # absolute; printable, so that any program can read it
        ("hash", pa.binary(32)),
        ("vector", pa.list_(pa.float32(), header.whitening.dim if header.whitening else header.about.dim)),
        *([("features", pa.list_(pa.float32(), header.about.dim))] if header.whitening else []),
        ("state", string),
        *((name, getattr(pa, kind)()) for name, kind in INFO.items()),
        ("bytes", pa.int64()),
        ("modified", pa.timestamp("us", tz="UTC")),
        *((name, number) for name in (("latitude", "longitude") if header.about.gps else ())),
        # What an import needs to give the same index.
        ("root", pa.int32()),
        ("name", pa.binary()),  # below the root: the bytes that the file system knows
        ("stamp", string),
        ("settled", pa.bool_()),
        ("other", string),
        ("signature", pa.binary()),
    ]
    record = {
        "layout": LAYOUT if header.whitening else 1,
        "about": vars(header.about),
        "roots": header.roots,
        "separator": header.separator,
        "distinct": header.distinct,
        "photos": header.photos,
    }
    if header.whitening:
        record["whitening"] = b64encode(header.whitening.to_bytes()).decode()
    text = json.dumps(record).encode()
    return pa.schema(columns, metadata={_KEY: text, _CHECKSUM_KEY: b"%d" % zlib.crc32(text)})


def read_header(found: Any, name: str) -> Header:
    """The header in an Arrow schema, whose columns must be those of an export.

    Raises:
        ExportError: it is no export, or of a newer version.
    """
    metadata = found.metadata or {}
    text = metadata.get(_KEY)
    if text is None:
        raise ExportError(f"{name}: not exported by simclr_hub: its schema does not tell what made the vectors")
    if metadata.get(_CHECKSUM_KEY) != b"%d" % zlib.crc32(text):
        raise ExportError(f"{name}: damaged: what it tells of the vectors does not match its checksum")
    try:
        record = json.loads(text)
        if record["layout"] > LAYOUT:
            raise ExportError(f"{name}: layout {record['layout']}, made by a newer simclr_hub: upgrade")
        about = About(**record["about"])
        header = Header(
            about,
            [(str(path), str(listing)) for path, listing in record["roots"]],
            str(record["separator"]),
            [(str(a), str(b)) for a, b in record["distinct"]],
            int(record["photos"]),
            Whitening.from_bytes(b64decode(record["whitening"])) if "whitening" in record else None,
        )
        valid = type(about.dim) is int and 0 < about.dim < WIDEST and about.metric == "cosine"
        told = isinstance(about.fingerprint, dict) and all(map(_plain, about.fingerprint.values()))
        rules = isinstance(about.exclude, list) and all(isinstance(pattern, str) for pattern in about.exclude)
        if not (valid and told and rules and isinstance(about.gps, bool) and isinstance(about.include_hidden, bool)):
            raise ValueError(f"made by {shortened(record['about'])}")
        Rules(tuple(about.exclude))  # which says what is wrong with a pattern
        whitening = header.whitening
        agrees = (whitening and whitening.sha256, len(whitening.mean) if whitening else about.dim)
        if agrees != (about.fingerprint.get("whitening"), about.dim):
            raise ValueError("its whitening is not the one that it tells of")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as e:
        if isinstance(e, ExportError):
            raise
        raise ExportError(f"{name}: what it tells of the vectors cannot be read: {e}") from e
    expected = schema(header)
    for field in expected:
        at = found.get_field_index(field.name)
        if at < 0 or found.field(at).type != field.type:
            there = found.field(at).type if at >= 0 else "missing"
            raise ExportError(f"{name}: its column {field.name} is {there}, not {field.type}")
    return header


def _plain(value: Any) -> bool:
    """Return whether a fingerprint may hold a value: text, a number, yes or no."""
    return value is None or (isinstance(value, (bool, int, float, str)) and len(str(value)) <= 1000)


def shortened(value: Any) -> str:
    """Return a value as text for a message, however long it is."""
    return text if len(text := repr(value)) <= 120 else f"{text[:117]}..."
