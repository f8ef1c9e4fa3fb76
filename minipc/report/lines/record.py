"""Lines of `minipc record` and `minipc verify`."""

import shlex

from minipc.report.lines.text import Values, percent, short_hash, size, told


def of_record(values: Values) -> list[str]:
    return [
        _size_of_record(values),
        f"teacher accuracy on the recorded views {told(values, 'teacher_accuracy')}; largest "
        f"KL by rounding logits {values['max_kl_of_rounding']:.1e}",
        *_carried(values),
        f"next: minipc train --record {shlex.quote(values['out'])}",
    ]


def of_demo_record(values: Values) -> list[str]:
    return [*of_record(values)[:-1], "next: minipc train"]


def of_record_share(values: Values) -> list[str]:
    return [
        f"{values['out']}: share {values['share']} is there, {values['shards_there']} of "
        f"{values['shards']} shards in all",
        "the other shares, or the same command without --shards, go on and finish",
    ]


def of_record_dry_run(values: Values) -> list[str]:
    """Return the lines of a dry run: few while data or teacher do not exist yet."""
    makes = f"would make: {', '.join(values['would_make']) or 'nothing'}"
    if values["run_id"] is None:
        return [makes]
    free = "unknown" if values["bytes_free"] is None else size(values["bytes_free"])
    return [
        _size_of_record(values),
        *_carried(values),
        f"shards: {values['shards']}, there {values['shards_there']}, to do "
        f"{values['shards'] - values['shards_there']} ({values['rows_left']} rows); needs "
        f"{size(values['bytes_needed'])}, free {free}",
        *(f"would set aside: {line}" for line in values["damaged"]),
        makes,
    ]


def _size_of_record(values: Values) -> str:
    return (
        f"{values['out']}: {values['clouds']} clouds x {values['views']} views, "
        f"{size(values['bytes'])}, run {short_hash(values['run_id'])}"
    )


def _carried(values: Values) -> list[str]:
    if values["clouds_as"] is None:
        return []
    how = {"int16": "int16, lossless", "float32": "float32, as int16 would lose bits"}
    return [
        f"training and test clouds embedded as {how[values['clouds_as']]}: "
        f"{size(values['clouds_bytes'])}"
    ]


def of_verify(values: Values) -> list[str]:
    rows, sampled = values["rows"], values["sampled"]
    lines = [
        f"{values['record']}: whole, and made from these clouds",
        f"parameters: {rows - values['parameters']} of {rows} rows are what the seed draws, bit "
        "for bit",
    ]
    if sampled:
        bitwise = values["bitwise"]
        asked = "bit for bit" if bitwise else "to within what rounding changes elsewhere"
        lines += [
            f"teacher: {sampled - values['different']} of {sampled} sampled rows come out {asked}; "
            f"largest difference {values['largest_difference']:.2g}, arg-max agrees in "
            f"{percent(values['agreement'])}",
            "asked for bit for bit: versions, kernel and device are those it was made with"
            if bitwise
            else f"not asked for bit for bit: {values['why']}",
        ]
    else:
        lines.append("teacher: not run again; pass --teacher MODEL")
    return [*lines, "verified" if values["passed"] else f"NOT verified: {values['failed']}"]
