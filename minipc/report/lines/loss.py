"""Lines of `minipc loss`."""

from minipc.report.lines.text import Values, percent


def of_loss(values: Values) -> list[str]:
    from minipc.audit.conventions import KD_LIB  # imported late, as below: these modules are large

    lines = [_verdict(values), ""]
    if values["translated"]:
        theirs = values["translated"]
        lines += [
            f"{theirs['from']} {theirs['weight']:g} at T = {values['T']:g}, K = "
            f"{values['classes']} is a = {values['a']:.6g}; their loss is "
            f"{theirs['theirs_is_times_ours']:.6g} x ours",
            "",
        ]
    alike = (
        "The same gradient elsewhere"
        if values["b"] == 0
        else "The first two terms elsewhere (no third one there)"
    )
    return [
        *lines,
        values["formula"],
        *_gradient(values),
        "",
        f"{alike}, K = {values['classes']}, labels smoothed alike:",
        *(_convention(name, row) for name, row in values["elsewhere"].items()),
        f"  {KD_LIB}",
        "",
        *_bound(values),
        "",
        *_map(values),
    ]


def _gradient(values: Values) -> list[str]:
    from minipc.nn.losses import GUARD_FLOOR

    a, b, T = values["a"], values["b"], values["T"]
    if values["guard"] == "none" or b == 0:
        terms = (
            [f"{1 - a:g} (s_1 - y)"]
            + [f"+ {a * T:g} (s_T - p)"] * (a > 0)
            + [f"- {b * T:g} (s_T - r)"] * (b > 0)
        )
        return [f"gradient = {' '.join(terms)}, of a row, in its logits"]
    return [
        f"gradient = {1 - a:g} (s_1 - y) + {T:g} ((sum q') s_T - q'), of a row, in its logits;",
        f"q' = max({a:g} p - {b:g} r, {GUARD_FLOOR * a:g} p), class by class; it does not sum to "
        "one: s - q is wrong",
    ]


def _convention(name: str, row: Values) -> str:
    weight, times = "none", ""
    if row["weight"] is not None:
        weight = f"{row['weight']:.6g}"
        times = f"ours = {row['ours_is_times_theirs']:.4g} x theirs"
    return f"  {name:13} {weight:9} {times:24} {row['formula']} ({row['used_by']})"


def _verdict(values: Values) -> str:
    """Return whether the loss in use is bounded below, in one line."""
    share = f"{percent(values['unbounded_share'])} of the rows"
    if values["b"] == 0:
        return "Bounded below: nothing is subtracted."
    if values["guard"] == "clip":
        return f"Bounded below by the guard; without it, not in {share}."
    if values["unbounded_share"]:
        return f"NOT bounded below: in {share} some M_i < 0, and the loss can fall without end."
    return "Bounded below in all of the rows; no guard, so other rows may not be."


def _bound(values: Values) -> list[str]:
    """Return lines on the rows, and on the one that allows the smallest b."""
    from numpy import argsort

    worst = values["worst_row"]
    label = f"label {worst['label']}" if worst["label"] >= 0 else "no label"
    columns = {
        "class": range(len(worst["y"])),
        "y": worst["y"],
        "p": worst["p"],
        "r": worst["r"],
        "M, no guard": worst["margins"],
    }
    if worst["target"] is not None:
        columns["target"], pulls = worst["target"], "the loss in use pulls s"
    elif worst["soft_target"] is not None:
        columns["target"] = worst["soft_target"]
        pulls = "the soft terms of the loss in use pull s_T"
    lines = [
        f"Rows: {values['rows']}.",
        f"Row {worst['row']} ({label}) bears the smallest b, up to {values['largest_safe_b']:.3g}; "
        "its least margins:",
        "  " + "  ".join(f"{name:>11}" for name in columns),
        *(
            "  " + "  ".join(f"{column[k]:11.3g}" for column in columns.values())
            for k in argsort(worst["margins"])[:3]
        ),
    ]
    if "target" in columns:
        negative = min(columns["target"]) < 0
        beyond = "; no probability is negative: it never gets there" if negative else ""
        lines.append(f"  target: where {pulls}{beyond}")
    return lines


def _map(values: Values) -> list[str]:
    """Return the map of unbounded rows over b and T."""
    shares = {(each["b"], each["T"]): each["unbounded_share"] for each in values["map"]}
    bs, Ts = (list(dict.fromkeys(axis)) for axis in zip(*shares, strict=True))
    return [
        f"Rows without a lower bound in %, at a = {values['a']:g}, smoothing "
        f"{values['label_smoothing']:g}, no guard:",
        "      b  " + "".join(f"T = {T:<5g}" for T in Ts),
        *(f"  {b:5g}  " + "".join(f"{100 * shares[b, T]:<9.3g}" for T in Ts) for b in bs),
    ]
