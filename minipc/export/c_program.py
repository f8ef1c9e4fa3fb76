"""A network as a C program: tables of its numbers before the C files of the folder c.

C99, nothing allocated, float32 or whole numbers.  The same network gives the same bytes.
"""

import re
from importlib.resources import files
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from minipc import __version__
from minipc.export.described import Described
from minipc.export.folding import Map, Network
from minipc.export.int8 import WholeMap, WholeNetwork

COLUMNS = 100


class Member(NamedTuple):
    """One buffer of the state."""

    kind: str  # of C
    name: str
    length: str  # an expression of C
    bytes: int  # for clouds of Described.points


class Program(NamedTuple):
    files: dict  # {name: text}
    weights: int  # bytes of its tables
    buffers: int  # bytes of its state


BYTES = {"float": 4, "uint8_t": 1, "int16_t": 2, "int32_t": 4, "struct minipc_near": 0}


def program(
    network: Network,
    about: Described,
    clouds: np.ndarray,
    expected: np.ndarray,
    allowed: float,
    whole: WholeNetwork | None = None,
) -> Program:
    """Return the files of a program, in float32, or in whole numbers if whole is given.

    clouds (C, N, 3) float32 and their logits expected (C, K), float32 or int32, are the self-test;
    allowed: by how much a logit may differ.
    """
    least = network.levels[0].centres if network.levels else 1
    most = max(about.points, clouds.shape[1], least)
    state = _state(network, about._replace(points=most), whole is not None)
    tables, weights = _tables(network, whole)
    text = {
        "model.h": _header(network, about, whole, state, most),
        "model.c": _source(network, about, whole, tables),
        "selftest.c": _selftest(clouds, expected, allowed),
        "classify.c": _part("classify.c"),
        "Makefile": _part("Makefile"),
    }
    return Program(text, weights, sum(field.bytes for field in state))


def _part(name: str) -> str:
    return (files("minipc.export") / "c" / name).read_text("ascii")


def c_string(text: str) -> str:
    """Return text as a literal of C, in UTF-8: octal escapes end after three digits, and "?" is
    escaped, because two of them begin a trigraph."""
    plain = {chr(code) for code in range(32, 127)} - set('"\\?')
    escaped = "".join(
        chr(byte) if chr(byte) in plain else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{escaped}"'


def _wrapped(words: Any, indent: str = "    ") -> str:
    """Return words with commas between them, in lines of at most COLUMNS."""
    lines, line = [], indent
    for word in words:
        if len(line) + len(word) + 2 > COLUMNS and line != indent:
            lines.append(line.rstrip())
            line = indent
        line += f"{word}, "
    return "\n".join([*lines, line.rstrip().rstrip(",")])


def _number(value: Any) -> str:
    """Return a number of an array as C reads it back: the shortest text of a float32."""
    if isinstance(value, np.floating):
        return f"{value!s}f"  # without !s as many digits as a double has
    return str(int(value))


def _array(kind: str, name: str, values: np.ndarray) -> str:
    flat = values.ravel()
    return f"static const {kind} {name}[{flat.size}] = {{\n{_wrapped(map(_number, flat))}\n}};\n"


def _comment(about: Described, what: str) -> str:
    kinds = f"up axis {about.up_axis}, normalisation {about.normalisation}"
    return f"/* {about.title}, {what}; {kinds}.\n   Made by minipc {__version__}. */\n"


def _state(network: Network, about: Described, whole: bool) -> list[Member]:
    """Return the buffers of a program."""
    feature, element, total = (
        ("uint8_t", "int16_t", "int32_t") if whole else ("float", "float", "float")
    )
    even, odd = [1], [3]

    def run(inputs: int, maps: list[Map]) -> None:
        odd.append(inputs)
        for number, each in enumerate(maps):
            (odd if number % 2 else even).append(each.A.shape[1])

    def field(kind: str, name: str, length: int) -> Member:
        return Member(kind, name, str(length), BYTES[kind] * length)

    run(3, network.entry)
    for level in network.levels:
        for scale in level.scales:
            run(len(scale.maps[0].A), scale.maps)
        if level.residual:
            run(len(level.residual.A), [level.residual])
    run(len(network.last[0].A), network.last)
    pooled = network.last[-1].A.shape[1]
    run(len((network.head or [network.out])[0].A), network.head)
    found = [
        field(feature, "largest", pooled),
        *([field(total, "sum", pooled)] if network.mean else []),
        field(element, "even", max(even)),
        field(element, "odd", max(odd)),
    ]
    if not network.levels:
        return [*found, Member("int", "seen", "", 4), Member("int", "bad", "", 4)]
    x, y = 1, 1
    for number, level in enumerate(network.levels):
        size = level.centres * _channels(level)
        x, y = (max(x, size), y) if number % 2 else (x, max(y, size))
    entry = network.entry[-1].A.shape[1] if network.entry else 0
    of_points = max(about.points, network.levels[0].centres)
    in_x = f"MINIPC_MOST_POINTS * {entry} > {x} ? MINIPC_MOST_POINTS * {entry} : {x}"
    centres = network.levels[0].centres
    most = max(scale.members for level in network.levels for scale in level.scales)
    return [
        *found,
        Member("float", "nearest", "MINIPC_MOST_POINTS", 4 * of_points),
        Member("float", "centre", f"{centres}][3", 12 * centres),
        Member("struct minipc_near", "near", str(most), 16 * most),
        Member(feature, "x", in_x if entry else str(x), BYTES[feature] * max(of_points * entry, x)),
        field(feature, "y", y),
    ]


def _channels(level: Any) -> int:
    return sum(scale.maps[-1].A.shape[1] for scale in level.scales)


def _header(
    network: Network,
    about: Described,
    whole: WholeNetwork | None,
    state: list[Member],
    most: int,
) -> str:
    kinds = "uint8_t int16_t int32_t int32_t" if whole else "float float float float"
    names = ("minipc_feature", "minipc_element", "minipc_sum", "minipc_logit")
    types = "\n".join(f"typedef {k} {n};" for k, n in zip(kinds.split(), names, strict=True))
    fields = "\n".join(
        f"    {field.kind} {field.name}{f'[{field.length}]' if field.length else ''};"
        for field in state
    )
    unit = repr(whole.logit) if whole else "1.0"
    levels = network.levels
    points = max(about.points, levels[0].centres) if levels else about.points
    near = (
        f"""
/* The most points of a cloud, for which there are buffers; it needs {levels[0].centres}. */
#ifndef MINIPC_MOST_POINTS
#define MINIPC_MOST_POINTS {most}
#endif

struct minipc_near {{
    float squared;
    size_t index;
}};
"""
        if levels
        else ""
    )
    stream = (
        ""
        if levels
        else """
/* The same point after point, which needs no array of points. */
void minipc_start(minipc_state *state);
void minipc_point(minipc_state *state, const float *point);
int minipc_finish(minipc_state *state, minipc_logit *logits);
"""
    )
    what = "whole numbers of 8 bits" if whole else "float32"
    return f"""{_comment(about, what)}
#ifndef MINIPC_MODEL_H
#define MINIPC_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define MINIPC_CLASSES {len(about.class_names)}
#define MINIPC_POINTS {points} /* of each cloud in training */
#define MINIPC_UNIT {unit} /* a logit is a minipc_logit times this */

{types}
{near}
/* The buffers: one variable of the caller, about {sum(field.bytes for field in state)} bytes. */
typedef struct {{
{fields}
}} minipc_state;

extern const char *const minipc_class_names[MINIPC_CLASSES]; /* UTF-8 */

#ifndef MINIPC_RAW
#define MINIPC_RAW double /* far from the origin, floats lose the shape of a small cloud */
#endif

/* Bring raw points (x y z, x y z, ...) to what the model expects, as minipc does it.  0, or -1 for
   a cloud that has no radius or is not finite. */
int minipc_normalise(const MINIPC_RAW *raw, size_t count, float *points);

/* The logits [MINIPC_CLASSES] and the class of normalised points; -1 for points that are not
   finite{", too few or too many" if levels else ", and for none"}. */
int minipc_classify(minipc_state *state, const float *points, size_t count, minipc_logit *logits);
{stream}
#ifdef __cplusplus
}}
#endif

#endif
"""


def _source(network: Network, about: Described, whole: WholeNetwork | None, tables: str) -> str:
    levels = network.levels
    residuals = int(any(level.residual for level in levels))
    starts = count()
    places = {each.name: next(starts) for each in network.maps}
    enum = {
        "ENTRIES": len(network.entry),
        "LEVELS": len(levels),
        "LAST": places[network.last[0].name],
        "LASTS": len(network.last),
        "HEAD": places[network.head[0].name] if network.head else places["out"],
        "HEADS": len(network.head),
        "OUT": places["out"],
        "POOLED": network.last[-1].A.shape[1],
    }
    defines: dict[str, Any] = enum | {
        "RESIDUALS": residuals,
        "MEAN": int(network.mean),
        "UNIT_SPHERE": int(about.normalisation == "unit_sphere"),
    }
    if levels:
        defines |= {"ENTRY": 0, "CENTRES": levels[0].centres}
    if network.mean:
        defines["MEAN_OF"] = levels[-1].centres
    if whole:
        defines["POSITIONS_IN_1"] = _number(np.float32(1 / whole.unit))
        if whole.mean:
            defines |= {"MEAN_FACTOR": whole.mean.factor, "MEAN_SHIFT": whole.mean.shift}
    macros = "\n".join(f"#define {name} {value}" for name, value in defines.items())
    names = "".join(f"    {c_string(name)},\n" for name in about.class_names)
    parts = [
        f"""{_comment(about, "whole numbers of 8 bits" if whole else "float32")}
#include "model.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if defined(FLT_EVAL_METHOD) && (FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2)
#error "floats are kept as doubles here; compile for single precision, e.g. -msse2 -mfpmath=sse"
#endif
#if !defined(__GNUC__) || defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "compile without -ffast-math and -Ofast: points that are not finite would get a class"
#endif

{macros}

const char *const minipc_class_names[MINIPC_CLASSES] = {{
{names}}};
""",
        _part("int8.c" if whole else "float.c"),
        tables,
        _places(network, places) if levels else "",
        _part("pooled.c"),
        _part("levels.c" if levels else "pointnet.c"),
        _part("normalise.c"),
    ]
    return "\n".join(part for part in parts if part)


def _places(network: Network, places: dict[str, int]) -> str:
    """Return the tables of levels and their scales."""
    scales: list[str] = []
    levels: list[str] = []
    for level in network.levels:
        first = len(scales)
        for scale in level.scales:
            squared = np.float32(scale.radius) * np.float32(scale.radius)
            at = places[scale.maps[0].name]
            scales.append(
                f"    {{{scale.members}, {_number(squared)}, {at}, {len(scale.maps)}}},\n"
            )
        most = max(scale.members for scale in level.scales)
        residual = places[level.residual.name] if level.residual else -1
        levels.append(
            f"    {{{level.centres}, {most}, {first}, {len(level.scales)}, {residual}, "
            f"{_channels(level)}}},\n"
        )
    return f"""struct scale {{
    int members;
    float squared_radius; /* 0: the nearest members, however far */
    int first, layers;    /* in maps */
}};

static const struct scale scales[] = {{
{"".join(scales)}}};

struct level {{
    int centres, members; /* the most of its scales */
    int first, scales;    /* in scales */
    int residual;         /* in maps, or -1 */
    int channels;         /* of its result */
}};

static const struct level levels[] = {{
{"".join(levels)}}};
"""


def _tables(network: Network, whole: WholeNetwork | None) -> tuple[str, int]:
    """Return the arrays of all maps, the table of maps, and the bytes of the arrays."""
    arrays, rows, size = [], [], 0
    for each in network.maps:
        label = re.sub(r"\W", "_", each.name)
        one = whole.maps[each.name] if whole else None
        columns = _whole_columns(one) if one else [("float", "A", each.A), ("float", "c", each.c)]
        for kind, name, values in columns:
            arrays.append(_array(kind, f"{label}_{name}", values))
            size += values.size * int(re.sub(r"\D", "", kind) or 32) // 8
        pointers = [f"{label}_{name}" for _, name, _ in columns]
        inputs, outputs = each.A.shape
        if one:
            if len(one.factors) == 1:
                pointers.insert(2, "NULL")
            rows.append([inputs, outputs, one.split, *pointers])
            if whole and any(level.residual for level in network.levels):
                rows[-1] += whole.residuals.get(each.name, (0, 0))
        else:
            rows.append([inputs, outputs, *pointers])
    table = "".join(f"    {{{', '.join(map(str, row))}}},\n" for row in rows)
    return "\n".join([*arrays, f"static const struct map maps[] = {{\n{table}}};\n"]), size


def _whole_columns(one: WholeMap) -> list[tuple[str, str, np.ndarray]]:
    factors = [
        ("int32_t", f"factor{'2' * number}", values) for number, values in enumerate(one.factors)
    ]
    return [
        ("int8_t", "w", one.w.T),
        *factors,
        ("int64_t", "bias", one.bias),
        ("uint8_t", "shift", one.shift),
    ]


def _selftest(clouds: np.ndarray, expected: np.ndarray, allowed: float) -> str:
    def rows(arrays: np.ndarray) -> str:
        each = (f"    {{\n{_wrapped(map(_number, row.ravel()), ' ' * 8)}\n    }}" for row in arrays)
        return ",\n".join(each)

    return f"""/* Does this program compute here what minipc computed?  Exits with 0 if it does. */
#include "model.h"

#include <stdio.h>

#define CLOUDS {len(clouds)}
#define POINTS {clouds.shape[1]}
#define ALLOWED {allowed!r}

static const float clouds[CLOUDS][POINTS * 3] = {{
{rows(clouds)}
}};

static const minipc_logit expected[CLOUDS][MINIPC_CLASSES] = {{
{rows(expected)}
}};

{_part("selftest.c")}"""
