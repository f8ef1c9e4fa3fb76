"""Lines of `minipc export` and `minipc bench`."""

import shlex

from minipc.report.lines.text import Values, percent, size


def of_export(values: Values) -> list[str]:
    what = {"onnx": "an ONNX graph", "safetensors": "a safetensors file"}.get(values["form"])
    what = what or f"a C program in {values['numbers']}"
    first = f"{values['out']}: {values['title']} as {what}"
    if values["form"] == "safetensors":
        return [f"{first}, {values['bytes']:,} bytes"]
    if values["form"] == "onnx":
        lines = [f"{first}, opset {values['opset']}, {values['bytes']:,} bytes"]
        next_steps = []
    else:
        code = values.get("code_and_weights_bytes")
        lines = [
            f"{first}: {', '.join(values['files'])}",
            f"weights {values['weights_bytes']:,} bytes, "
            f"{f'with code {code:,} bytes (cc -Os), ' if code else ''}buffers "
            f"{values['buffer_bytes']:,} bytes",
        ]
        if "milliseconds" in values:
            lines.append(f"{values['milliseconds']:.3g} ms a cloud here (cc -O3, one thread)")
        folder = shlex.quote(values["out"])
        next_steps = [f"next: make -C {folder} && {folder}/selftest && {folder}/classify FILE"]
    return [*lines, *_checked(values), *next_steps]


def _checked(values: Values) -> list[str]:
    """Return lines on how an exported form was checked, and on its accuracy."""
    tool = values["checked_with"]
    lines = []
    if tool is None:
        lines.append("not run here: " + _WITHOUT[values["form"]])
    if "same_class" in values:
        clouds = values["clouds"]
        run = f"run by {tool} on" if tool == "onnxruntime" else "compiled by cc and run on"
        allowed = f" (allowed {values['allowed']:.2g})" if "allowed" in values else ""
        lines.append(
            f"{run if tool else 'computed as the program would for'} {clouds} test clouds: largest "
            f"difference of a logit {values['largest_difference']:.2g}{allowed}, the same class on "
            f"{values['same_class']} of {clouds}"
        )
    if "accuracy" in values:
        exported = values.get("exported_accuracy")
        model = f"that of the model {percent(values['accuracy'])}"
        if exported is not None:
            lines.append(f"accuracy {percent(exported)}, {model}")
    if values.get("numbers") == "int8":
        lines.append(
            f"scales from {values['calibrated_on']} training clouds"
            + ("; every logit is the one that docs/export.md defines" * bool(tool))
        )
    return lines


_WITHOUT = {
    "c": "no cc, or --no-check",
    "onnx": "no onnxruntime (pip install -e '.[onnx]'), or --no-check",
}


def of_bench(values: Values) -> list[str]:
    forms, block = values["forms"], values["block"]
    kernel = f"{values['blas']}{', kernel ' * bool(values['kernel'])}{values['kernel']}"
    threads = f"{values['threads']} thread{'s' * (values['threads'] > 1)}"
    width = max(len(one["form"]) for one in forms)
    rows = [
        f"  {one['form']:{width}}  {one['milliseconds']:9.3f} {one['milliseconds_95']:9.3f}  "
        f"{one['clouds_per_second']:10,.0f}  {_bytes(one.get('bytes')):>9}  "
        f"{_bytes(one.get('peak_bytes')):>9}"
        for one in forms
    ]
    return [
        f"{values['model']}: {values['title']}, {values['parameters']:,} parameters, "
        f"{values['macs_per_cloud'] / 1e6:.2f} M multiply-adds a cloud of {values['points']} "
        "points",
        f"{threads}, engine {values['engine']}, BLAS {kernel}; C programs use one thread",
        f"  {'':{width}}  ms median  95th pct    clouds/s       size    buffers",
        *rows,
        "ms: one cloud alone; predict makes the model's constants anew, as `minipc predict` does; "
        f"the evaluator keeps them; clouds/s: {block} clouds at once",
        *(f"not measured: {reason}" for reason in values["missing"]),
    ]


def _bytes(count: int | None) -> str:
    return "-" if count is None else size(count)
