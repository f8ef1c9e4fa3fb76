"""The pages of the file formats against the code: every number is read from the page.

Each check takes the text of its page, so that a planted change shows that it can fail.
"""

import re
import struct
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import h5py
import numpy as np
import pytest

from minipc.data import clouds, groups_file
from minipc.data.augment import ORDER, AugmentConfig, Params, apply, draw
from minipc.models import checkpoint, pointnet2
from minipc.models import file as model_file
from minipc.models.pointnet import ModelConfig
from minipc.nn.groups import dtype_of
from minipc.record import embedded, plan, shard, store
from minipc.record import fields as record_table
from minipc.record.reader import RECORD_META, RecordReader
from minipc.settings import RecordConfig, settings_of
from minipc.storage import files
from minipc.streams import view_words
from reference_tests.tools.pages import code, numbers, section, table, tables

ROOT = Path(__file__).parents[2]
RECORD = (ROOT / "docs" / "record_format.md").read_text()
FILES = (ROOT / "docs" / "file_formats.md").read_text()
GOLDEN = Path(__file__).parent / "golden"


FORMS = {"bytes": "{}s", "uint32": "I", "uint64": "Q"}


def header_is_the_struct(text):
    form, at = "<", 0
    *rows, rest = table(text, "Header")
    for offset, size, kind, *_ in rows:
        assert int(offset) == at == struct.calcsize(form)
        form, at = form + FORMS[kind].format(size), at + int(size)
        assert struct.calcsize(form) == at
    assert form == files._HEADER.format
    assert [row[3] for row in rows] == ["magic", "kind", "version", "zero", "length", "digest"]
    assert bytes.fromhex(rows[0][4]) == files._MAGIC
    assert tuple(code(rows[1][4])) == files.KINDS
    assert (int(rest[0]), int(rest[0]) + int(rest[1])) == (at, files.USER_BLOCK)


def a_header_by_the_page_is_ours(text):
    places = {row[3]: (int(row[0]), int(row[1])) for row in table(text, "Header")}
    data = bytearray((GOLDEN / "record-2.h5").read_bytes())
    number = {
        name: int.from_bytes(data[at : at + size], "little") for name, (at, size) in places.items()
    }
    assert (number["version"], number["zero"], number["length"]) == (2, 0, len(data))
    at, size = places["digest"]
    digest, data[at : at + size] = bytes(data[at : at + size]), bytes(size)
    assert files.hashlib.sha256(data).digest() == digest


def versions_are_those_of_the_code(text):
    *kinds, of_the_plan = (row[:2] for row in table(text, "Versions"))
    assert kinds == [
        ["shard", str(plan.FORMAT)],
        ["record", str(plan.FORMAT)],
        ["record", str(embedded.WITH_CLOUDS)],
        ["record", str(embedded.WITH_FILES)],
    ]
    assert of_the_plan[1] == str(plan.FORMAT)


JSON = {
    int: "integer",
    str: "text",
    dict: "object",
    tuple: "list",
    float: "number",
    bool: "true or false",
}


def canonical_json_is_spelled_as_the_page_says(text):
    said = section(text, "Canonical JSON")
    for value, spelling in ((1e-5, "1e-05"), (1e16, "1e+16")):
        assert f"`{spelling}`" in said and files.canonical_json(value) == spelling.encode()
    assert files.canonical_json({"b": [1.0, 1], "a": "\x7f\u00e9\U0001f600/"}) == (
        b'{"a":"\\u007f\\u00e9\\ud83d\\ude00/","b":[1.0,1]}'
    )
    short = re.findall(r"`\\(.)`", said)  # \" \\ \n \r \t \b \f
    assert len(short) == 7
    for letter in short:
        assert files.canonical_json(files.json.loads(f'"\\{letter}"')) == f'"\\{letter}"'.encode()


def hashes_are_those_of_the_code(text):
    with h5py.File(GOLDEN / "clouds-1.h5") as file:
        found = {part: file[f"train/{part}"][()] for part in ("points", "labels")}
    plan, said = golden_plan(), code(section(text, "Hash of arrays"))
    examples = [example for example in said if example.startswith('["')]
    for array, wanted, example in zip(
        found.values(), (plan.points_hash, plan.labels_hash), examples, strict=True
    ):
        kind, shape = files.json.loads(example)
        assert len(shape) == array.ndim
        front = files.json.dumps([kind, array.shape], separators=(",", ":")).encode()
        assert files.hashlib.sha256(front + array.tobytes()).hexdigest() == wanted


def plan_is_the_dataclass(text):
    hints = get_type_hints(plan.Plan)
    wanted = [[field.name, JSON[hints[field.name]]] for field in fields(plan.Plan)]
    rows = table(text, "Plan")
    assert [row[:2] for row in rows] == wanted
    said = {row[0]: row[2] for row in rows}
    assert numbers(said["rows_per_shard"]) == [plan.MOST_ROWS]
    assert numbers(said["format"]) == [plan.FORMAT]
    views = settings_of(RecordConfig)["views"]
    assert numbers(said["views"]) == [views.low, views.high]
    assert {*code(said["augment"])} == {"order", *(field.name for field in fields(AugmentConfig))}
    assert code(said["up_axis"]) == list(clouds.UP_AXES)


def run_id_is_that_of_the_golden_record(text):
    with RecordReader(str(GOLDEN / "record-1.h5")) as reader:
        assert re.findall(r"`([0-9a-f]{64})`", section(text, "Plan")) == [reader.plan.recording_id]


def draws_are_those_of_the_code(text):
    rows = table(text, "Draw of parameters")
    assert len(rows) == 2
    for row in rows:
        seed, view, cloud = map(int, row[:3])
        words = [int(word, 16) for word in row[3].split()]
        assert view_words(seed, view, cloud, 1)[0].tolist() == words
        config = AugmentConfig()
        bits = [int(value, 16) for value in row[4].split()]
        assert (
            np.concatenate(draw(seed, view, cloud, 1, config), axis=1)[0].view(np.uint32).tolist()
            == bits
        )
        low, high, most = (
            config.scale_low,
            config.scale_high,
            config.shift_max,
        )  # and by the formula of the page
        u = [(word >> 11) * 2.0**-53 for word in words]
        again = [low + (high - low) * x for x in u[:3]] + [-most + (most + most) * x for x in u[3:]]
        assert np.array(again, np.float32).view(np.uint32).tolist() == bits


def replay_is_that_of_the_code(text):
    assert ORDER in code(section(text, "Replay"))
    rows = table(text, "Replay")
    assert len(rows) == 2
    for row in rows:
        bits = np.array([int(cell, 16) for cell in row], np.uint32)
        x, scale, shift, product, replayed, fused = bits.view(np.float32)
        three = np.broadcast_to(x, (1, 1, 3))
        params = Params(*(np.broadcast_to(value, (1, 3)) for value in (scale, shift)))
        assert (apply(three, params) == replayed).all() and x * scale == product
        exact = np.float64(x) * np.float64(scale) + np.float64(
            shift
        )  # the product is exact in binary64
        assert np.float32(exact) == fused != replayed


def rows_of(some):
    return [[field.name, field.dtype, " ".join(field.axes)] for field in some]


def fields_are_the_table(text):
    for heading, some in (
        ("Of a record", record_table.record_fields("plan")),
        ("Of a shard", record_table.shard_fields("plan")),
        ("Of a record with clouds", record_table.cloud_fields("clouds")),
    ):
        assert table(text, heading) == rows_of(some), heading
    letters = {
        *"".join(
            field.axes for field in record_table.record_fields("x") + record_table.cloud_fields("x")
        )
    }
    assert {row[0] for row in table(text, "Fields")} == letters


def golden_records_have_the_fields_of_the_page(text):
    """Read with h5py alone, by the page alone."""
    rows = [row[0] for row in table(text, "Of a record")]
    more = [row[0] for row in table(text, "Of a record with clouds")]
    for version, names in ((1, rows), (2, rows + more), (3, rows + more)):
        with h5py.File(GOLDEN / f"record-{version}.h5") as file:
            assert datasets(file) == {*names, "meta"}
            assert all(
                file[name].chunks is None and file[name].id.get_offset() > 512 for name in names
            )


def datasets(file):
    """Return the names of the datasets of an open file, at every depth."""
    names = []
    file.visit(names.append)
    return {name for name in names if isinstance(file[name], h5py.Dataset)}


def metadata_is_that_of_the_code(text):
    for heading, wanted in (
        ("Of the record", RECORD_META | {"clouds"}),
        ("Of the shard", shard.SHARD_META),
        ("Of the clouds", embedded.CLOUDS_META | {"files"}),
    ):
        found = [row[0] for row in table(text, heading)]
        assert len(found) == len(set(found)) and set(found) == wanted, heading


def names_of_shards_are_those_of_the_code(text):
    (name,) = re.findall(r"`(view-\d+-row-\d+\.h5)`", section(text, "Of a shard"))
    place = store.Store("nowhere/out.h5", golden_plan())
    assert place.parts.shard_path(1, 4096) == f"nowhere/out.h5.parts/{name}"


def golden_plan():
    with RecordReader(str(GOLDEN / "record-1.h5")) as reader:
        return reader.plan


RECORD_CHECKS = [
    header_is_the_struct,
    a_header_by_the_page_is_ours,
    versions_are_those_of_the_code,
    canonical_json_is_spelled_as_the_page_says,
    hashes_are_those_of_the_code,
    plan_is_the_dataclass,
    run_id_is_that_of_the_golden_record,
    draws_are_those_of_the_code,
    replay_is_that_of_the_code,
    fields_are_the_table,
    golden_records_have_the_fields_of_the_page,
    metadata_is_that_of_the_code,
    names_of_shards_are_those_of_the_code,
]


def versions_of_files_are_those_of_the_code(text):
    assert [row[:2] for row in tables(text)[0]] == [
        [clouds.KIND, str(clouds.VERSION)],
        [model_file.KIND, str(model_file.VERSION)],
        [checkpoint.KIND, str(checkpoint.VERSION)],
        [groups_file.KIND, str(groups_file.VERSION)],
    ]


def clouds_are_those_of_the_code(text):
    with h5py.File(GOLDEN / "clouds-3.h5") as file:
        for name, dtype, axes in table(text, "Clouds"):
            assert file[name].dtype == dtype and len(axes.split()) == file[name].ndim
        meta = files.parse_json(file["meta"][...], "golden")
    rows = table(text, "Clouds", 1)
    assert {row[0] for row in rows} == set(meta)
    hints = get_type_hints(clouds.Clouds)
    assert all(JSON[hints[name]] == kind for name, kind, _ in rows)


def models_are_those_of_the_code(text):
    hints = get_type_hints(ModelConfig)
    assert [row[:2] for row in table(text, "Model", 1)] == [
        [field.name, JSON[hints[field.name]]] for field in fields(ModelConfig)
    ]
    with h5py.File(GOLDEN / "model-1.h5") as file:
        shapes = {
            f"{group}/{name}": file[group][name].shape
            for group in ("params", "stats")
            for name in file[group]
        }
        meta = files.parse_json(file["meta"][...], "golden")
    assert {row[0]: tuple(map(int, row[1].split())) for row in table(text, "Model")} == shapes
    assert set(meta) <= {*code(section(text, "Model"))}
    hints, shared = (
        get_type_hints(pointnet2.ModelConfig),
        {field.name for field in fields(ModelConfig)},
    )
    assert [row[:2] for row in table(text, "Model", 2)] == [
        [field.name, JSON[hints[field.name]]]
        for field in fields(pointnet2.ModelConfig)
        if field.name == "head" or field.name not in shared
    ]
    said = code(section(text, "Model"))
    levels = tuple(text for text in said if "/" in text and ":" in text)
    assert len(pointnet2.ModelConfig((), levels, (8,), False, (), 3).parsed) == 2
    with h5py.File(GOLDEN / "model-2-pointnet2.h5") as file:
        for name in ("level0.scale0.0", "level0.residual", "entry0", "last0", "head0", "out"):
            assert f"{name}.W" in file["params"] and name in said


def checkpoints_are_those_of_the_code(text):
    assert tuple(row[0] for row in table(text, "Checkpoint")) == (
        *checkpoint.GROUPS,
        checkpoint.AVERAGE,
    )
    types = re.findall(r"`([<|]\w\d)`", section(text, "Checkpoint"))
    assert tuple(types) == checkpoint.DTYPES
    with h5py.File(GOLDEN / "checkpoint-1.h5") as file:
        meta = files.parse_json(file["meta"][...], "golden")
        assert set(file) == {"meta", *checkpoint.GROUPS}
        prefixes = {name.split(".")[0] for name in file["optimiser"]}
    assert {row[0] for row in table(text, "Checkpoint", 1)} == set(meta)
    assert {f"{prefix}.NAME" for prefix in prefixes} <= {*code(section(text, "Checkpoint"))}


def groups_are_those_of_the_code(text):
    said = section(text, "Groups")
    assert {row[0] for row in table(text, "Groups")} == groups_file.META
    hints = get_type_hints(groups_file.Indices)
    rows = table(text, "Groups", 1)
    assert [row[:2] for row in rows] == [
        [name, JSON[hints[name]]] for name in groups_file.Indices._fields
    ]
    assert tuple(code(rows[2][2])) == groups_file.DTYPES and numbers(rows[2][2])[-1] == 65_536
    assert [dtype_of(number).name for number in (65_536, 65_537)] == ["uint16", "uint32"]
    path = GOLDEN / "groups-1.h5"
    found = groups_file.read_groups(path)
    assert {each.name for each in found.indices} >= {*code(rows[0][2])}
    plain = {each.rule for each in found.indices if "radius" not in each.rule}
    assert plain == {*code(rows[4][2])} - {"nearest in radius R"}
    key = [found.points_hash, [[getattr(each, row[0]) for row in rows] for each in found.indices]]
    (form,) = re.findall(r"`(\[points_hash, .*)`", said)
    assert form == f"[points_hash, [[{', '.join(row[0] for row in rows)}], ...]]"
    digest = files.hashlib.sha256(files.canonical_json(key)).hexdigest()
    (digits,) = re.findall(r"first (\d+) digits", said)
    name = groups_file.groups_path("clouds.h5", found.points_hash, found.indices)
    assert name == f"groups-{digest[: int(digits)]}.h5"


FILE_CHECKS = [
    versions_of_files_are_those_of_the_code,
    clouds_are_those_of_the_code,
    models_are_those_of_the_code,
    checkpoints_are_those_of_the_code,
    groups_are_those_of_the_code,
]


@pytest.mark.parametrize("check", RECORD_CHECKS, ids=lambda check: check.__name__)
def test_the_page_of_records_says_what_the_code_does(check):
    check(RECORD)


@pytest.mark.parametrize("check", FILE_CHECKS, ids=lambda check: check.__name__)
def test_the_page_of_files_says_what_the_code_does(check):
    check(FILES)


@pytest.mark.parametrize(
    "page, check, right, wrong",
    [
        (
            RECORD,
            header_is_the_struct,
            "| 24 | 4 | uint32 | version",
            "| 28 | 4 | uint32 | version",
        ),
        (RECORD, header_is_the_struct, "| 32 | 8 | uint64 |", "| 32 | 4 | uint32 |"),
        (RECORD, header_is_the_struct, "89 6d 69", "88 6d 69"),
        (RECORD, header_is_the_struct, "`shard`, `checkpoint`", "`shard`"),
        (RECORD, header_is_the_struct, "| 72 | 440 |", "| 72 | 441 |"),
        (
            RECORD,
            a_header_by_the_page_is_ours,
            "| 40 | 32 | bytes | digest",
            "| 48 | 32 | bytes | digest",
        ),
        (RECORD, versions_are_those_of_the_code, "| record | 2 |", "| record | 4 |"),
        (RECORD, versions_are_those_of_the_code, "of the plan | 1 |", "of the plan | 2 |"),
        (RECORD, canonical_json_is_spelled_as_the_page_says, "`1e-05`", "`1e-5`"),
        (RECORD, canonical_json_is_spelled_as_the_page_says, "`\\f`", "`\\v`"),
        (RECORD, hashes_are_those_of_the_code, '["<i8",[9843]]', '["<i4",[9843]]'),
        (RECORD, plan_is_the_dataclass, "| `block` | integer |", "| `block` | text |"),
        (RECORD, plan_is_the_dataclass, "at most 4096 |", "at most 8192 |"),
        (RECORD, plan_is_the_dataclass, "| `up_axis` | text | `x`, `y`, `z` or `unknown` |\n", ""),
        (RECORD, run_id_is_that_of_the_golden_record, "`4212ed7a", "`4212ed7b"),
        (RECORD, draws_are_those_of_the_code, "| 7 | 1 | 3 |", "| 7 | 1 | 2 |"),
        (RECORD, draws_are_those_of_the_code, "3fa17ca8 3f6f462f", "3fa17ca9 3f6f462f"),
        (
            RECORD,
            replay_is_that_of_the_code,
            "points * scale, then + shift",
            "points + shift, then * scale",
        ),
        (RECORD, replay_is_that_of_the_code, "`bda565ce` | `bda565cf`", "`bda565cf` | `bda565ce`"),
        (RECORD, fields_are_the_table, "| clouds | M Q D |", "| clouds | N Q D |"),
        (RECORD, fields_are_the_table, "| Q | points of a test cloud |\n", ""),
        (
            RECORD,
            fields_are_the_table,
            "| `logits` | plan | V N K |",
            "| `logits` | plan | N V K |",
        ),
        (
            RECORD,
            fields_are_the_table,
            "| `augment/shift` | float32 | N D |",
            "| `augment/shift` | float64 | N D |",
        ),
        (
            RECORD,
            golden_records_have_the_fields_of_the_page,
            "| `clouds/test/labels` | int64 | M |\n",
            "",
        ),
        (RECORD, metadata_is_that_of_the_code, "| `max_kl` |", "| `max_divergence` |"),
        (RECORD, metadata_is_that_of_the_code, "| `exponent` |", "| `scale` |"),
        (
            RECORD,
            names_of_shards_are_those_of_the_code,
            "view-00001-row-00004096",
            "view-0001-row-00004096",
        ),
        (FILES, versions_of_files_are_those_of_the_code, "| clouds | 3 |", "| clouds | 9 |"),
        (
            FILES,
            clouds_are_those_of_the_code,
            "| `train/labels` | int64 |",
            "| `train/labels` | int32 |",
        ),
        (FILES, clouds_are_those_of_the_code, "| `up_axis` | text |", "| `up` | text |"),
        (
            FILES,
            models_are_those_of_the_code,
            "| `params/head0.W` | 4 3 |",
            "| `params/head0.W` | 3 4 |",
        ),
        (
            FILES,
            checkpoints_are_those_of_the_code,
            "| `stats` | running",
            "| `statistics` | running",
        ),
        (FILES, checkpoints_are_those_of_the_code, "`|u1` (who", "`|b1` (who"),
        (FILES, checkpoints_are_those_of_the_code, "| `steps` |", "| `step` |"),
        (FILES, checkpoints_are_those_of_the_code, "`v.NAME`", "`u.NAME`"),
        (FILES, versions_of_files_are_those_of_the_code, "| groups | 1 |", "| groups | 2 |"),
        (FILES, groups_are_those_of_the_code, "| `points_hash` | of", "| `hash` | of"),
        (FILES, groups_are_those_of_the_code, "| `below` | integer |", "| `below` | text |"),
        (FILES, groups_are_those_of_the_code, "65536", "65535"),
        (FILES, groups_are_those_of_the_code, "`farthest points`", "`farthest`"),
        (FILES, groups_are_those_of_the_code, "first 16 digits", "first 32 digits"),
        (FILES, groups_are_those_of_the_code, "[[name, shape, dtype,", "[[name, dtype, shape,"),
        (FILES, models_are_those_of_the_code, "| `eps` | number |", "| `epsilon` | number |"),
        (FILES, models_are_those_of_the_code, "| `mean` | true or false |", "| `mean` | number |"),
        (FILES, models_are_those_of_the_code, "`level0.residual`", "`level0.beside`"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_planted_mistake_in_a_page_is_noticed(page, check, right, wrong):
    assert page.count(right) == 1
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check(page.replace(right, wrong))


def test_every_check_is_seen_to_fail():
    (mark,) = test_a_planted_mistake_in_a_page_is_noticed.pytestmark
    assert {check for _, check, _, _ in mark.args[1]} == {*RECORD_CHECKS, *FILE_CHECKS}
