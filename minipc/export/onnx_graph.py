"""A network as an ONNX graph from points (B, N, 3) to logits (B, K), any B and N.

Neighbourhoods are found in the graph, as nn/groups.py finds them: a Loop for the farthest points,
TopK, which takes the lower index of equal distances, for the nearest.  So points are all it reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from minipc.errors import BackendError

if TYPE_CHECKING:
    from minipc.export.described import Described
    from minipc.export.folding import Level, Map, Network, Scale

OPSET, IR_VERSION = 13, 7  # of 2021: what runtimes on small machines understand
REMEDY = "pip install -e '.[onnx]'"


def model(network: Network, about: Described) -> Any:
    """Return the onnx.ModelProto.  Raises BackendError without the package onnx."""
    try:
        import onnx
    except ImportError as reason:
        raise BackendError(f"--onnx needs the package onnx: {REMEDY}") from reason
    helper, graph = onnx.helper, _Graph(onnx)
    logits = graph.logits(network)
    graph.node("Identity", [logits], output="logits")
    kind = onnx.TensorProto.FLOAT
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            about.title,
            [helper.make_tensor_value_info("points", kind, ["clouds", "points", 3])],
            [helper.make_tensor_value_info("logits", kind, ["clouds", len(about.class_names)])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="minipc",
    )
    helper.set_model_props(proto, about.as_text())
    onnx.checker.check_model(proto, full_check=True)
    return proto


class _Graph:
    """Nodes and constants that grow; methods return the name of what they compute."""

    def __init__(self, onnx: Any, prefix: str = "") -> None:
        self.onnx, self.prefix = onnx, prefix
        self.nodes: list = []
        self.constants: list = []

    def node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{self.prefix}{operator}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"{self.prefix}constant{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def whole(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def concat(self, *parts: str) -> str:
        return self.node("Concat", list(parts), axis=-1) if len(parts) > 1 else parts[0]

    def linear(self, each: Map, x: str) -> str:
        product = self.node("MatMul", [x, self.constant(each.A)])
        return self.node("Add", [product, self.constant(each.c)])

    def layers(self, maps: list[Map], x: str) -> str:
        for each in maps:
            x = self.node("Relu", [self.linear(each, x)])
        return x

    def logits(self, network: Network) -> str:
        positions, x = "points", None
        if network.entry:
            x = self.layers(network.entry, positions)
        for number, level in enumerate(network.levels):
            positions, x = self.level(level, positions, x, number)
        x = self.layers(network.last, positions if x is None else self.concat(positions, x))
        pooled = self.node("ReduceMax", [x], axes=[1], keepdims=0)
        if network.mean:
            pooled = self.concat(pooled, self.node("ReduceMean", [x], axes=[1], keepdims=0))
        logits = self.linear(network.out, self.layers(network.head, pooled))
        return self.refusing(network, logits)

    def refusing(self, network: Network, logits: str) -> str:
        """Return logits, or NaN for a cloud that is not finite and for fewer points than centres.

        A maximum may pass over NaN, and a Loop repeats points: both would look like an answer.
        """
        zeros = self.node("Sub", ["points", "points"])  # or NaN
        zero = self.node("ReduceSum", [zeros, self.whole(1, 2)], keepdims=0)  # (B,)
        logits = self.node("Add", [logits, self.node("Unsqueeze", [zero, self.whole(1)])])
        if not network.levels:
            return logits
        few = self.node("Less", [self.count("points"), self.whole(network.levels[0].centres)])
        no, yes = self.constant(np.float32(np.nan)), self.constant(np.float32(0))
        return self.node("Add", [logits, self.node("Where", [few, no, yes])])

    def count(self, x: str) -> str:
        """Return how many points x (B, N, 3) has, (1,)."""
        return self.node("Gather", [self.node("Shape", [x]), self.whole(1)])

    def level(self, level: Level, positions: str, x: str | None, number: int) -> tuple[str, str]:
        """Return the positions of the centres (B, M, 3) and what their groups see (B, M, O)."""
        if number == 0:
            at = self.gather(positions, self.farthest(positions, level.centres))
        else:  # the first of the order of the level below
            at = self.node(
                "Slice", [positions, self.whole(0), self.whole(level.centres), self.whole(1)]
            )
        most = max(scale.members for scale in level.scales)
        k = self.node("Min", [self.count(positions), self.whole(most)])
        squared, nearest = f"squared{number}", f"nearest{number}"
        self.nodes.append(
            self.onnx.helper.make_node(
                "TopK", [self.distances(at, positions), k], [squared, nearest], largest=0, axis=2
            )
        )
        features = self.concat(
            *(self.scale(each, positions, at, x, squared, nearest) for each in level.scales)
        )
        if level.residual:
            features = self.node("Add", [self.layers([level.residual], features), features])
        return at, features

    def scale(
        self, scale: Scale, positions: str, at: str, x: str | None, squared: str, nearest: str
    ) -> str:
        def first(array: str, members: int) -> str:
            return self.node("Slice", [array, self.whole(0), self.whole(members), self.whole(2)])

        members = first(nearest, scale.members)
        if scale.radius:
            radius = np.float32(scale.radius)
            inside = self.node(
                "Less", [first(squared, scale.members), self.constant(radius * radius)]
            )
            members = self.node("Where", [inside, members, first(nearest, 1)])
        centres = self.node("Unsqueeze", [at, self.whole(2)])
        rows = self.node("Sub", [self.gather(positions, members), centres])
        if x is not None:
            rows = self.concat(rows, self.gather(x, members))
        return self.node("ReduceMax", [self.layers(scale.maps, rows)], axes=[2], keepdims=0)

    def gather(self, x: str, members: str) -> str:
        """Return x (B, N, C) at members (B, ...) -> (B, ..., C)."""
        last = self.node("Unsqueeze", [members, self.whole(-1)])
        return self.node("GatherND", [x, last], batch_dims=1)

    def distances(self, at: str, positions: str) -> str:
        """Return squared distances (B, M, N), added in the order x, y, z."""
        total = ""
        for axis in range(3):
            ends = self.whole(axis), self.whole(axis + 1), self.whole(2)
            column = self.node("Slice", [at, *ends])  # (B, M, 1)
            row = self.node("Transpose", [self.node("Slice", [positions, *ends])], perm=[0, 2, 1])
            difference = self.node("Sub", [row, column])
            square = self.node("Mul", [difference, difference])
            total = self.node("Add", [total, square]) if total else square
        return total

    def farthest(self, positions: str, count: int) -> str:
        """Return the indices (B, count) of farthest points, by a Loop.

        State: squared distances to the chosen points (B, N), and the last chosen point (B, 1).
        """
        onnx, body = self.onnx, _Graph(self.onnx, "farthest ")
        helper = onnx.helper
        at = body.gather(positions, "at")  # (B, 1, 3)
        squared = body.node("Squeeze", [body.distances(at, positions), body.whole(1)])
        nearest = body.node("Min", ["nearest", squared])
        chosen = body.node("Mul", [body.node("Cast", ["at"], to=1), body.constant(np.float32(0))])
        never = body.node("Sub", [chosen, body.constant(np.float32(1))])  # -1, (B, 1)
        body.node("ScatterElements", [nearest, "at", never], output="nearest out", axis=1)
        body.node("ArgMax", ["nearest out"], output="at out", axis=1, keepdims=1)
        body.node("Identity", ["more"], output="more out")
        body.node("Identity", ["at"], output="chosen")

        def value(name: str, kind: int, *shape: Any) -> Any:
            return helper.make_tensor_value_info(name, kind, shape)

        real, whole, boolean = (
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.INT64,
            onnx.TensorProto.BOOL,
        )
        rows = ("clouds", "points")
        loop = helper.make_graph(
            body.nodes,
            "farthest points",
            [
                value("step", whole),
                value("more", boolean),
                value("nearest", real, *rows),
                value("at", whole, "clouds", 1),
            ],
            [
                value("more out", boolean),
                value("nearest out", real, *rows),
                value("at out", whole, "clouds", 1),
                value("chosen", whole, "clouds", 1),
            ],
            body.constants,
        )
        shape = self.node("Shape", [positions])
        clouds = self.node("Slice", [shape, self.whole(0), self.whole(1)])
        sizes = self.node("Slice", [shape, self.whole(0), self.whole(2)])
        infinite = onnx.numpy_helper.from_array(np.array([np.inf], np.float32))
        start = self.node("ConstantOfShape", [sizes], value=infinite)
        zero = onnx.numpy_helper.from_array(np.array([0], np.int64))
        one = self.node("Concat", [clouds, self.whole(1)], axis=0)
        first = self.node("ConstantOfShape", [one], value=zero)
        steps, more = self.constant(np.array(count, np.int64)), self.constant(np.array(True))
        self.nodes.append(
            helper.make_node(
                "Loop",
                [steps, more, start, first],
                ["nearest at last", "last chosen", "chosen points"],
                body=loop,
            )
        )
        order = self.node("Transpose", ["chosen points"], perm=[1, 0, 2])  # (B, count, 1)
        return self.node("Squeeze", [order, self.whole(2)])


def session(data: bytes, threads: int) -> Any | None:
    """Return classify(points (B, N, 3)) -> logits by onnxruntime, or None where it is missing."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    run = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run
    return lambda points: run(["logits"], {"points": points})[0]
