"""A module of PyTorch recorded, verified by a function that makes it, and a student that learns."""

import json
from pathlib import Path

import numpy as np
import pytest

from minipc.data.clouds import read_clouds
from minipc.errors import DataError, UsageError
from minipc.models.file import read_model, write_model
from minipc.models.model import sizes
from minipc.record.reader import RecordReader
from minipc.verbs.verify import verify
from reference_tests.tools.with_torch import torch

# isort: split
from minipc.torch.dataset import RecordDataset
from minipc.torch.loss import loss
from minipc.torch.modules import PointNet, to_module
from minipc.torch.record import record_module
from minipc.torch.state_dict import from_state_dict
from minipc.torch.teacher import ModuleTeacher, module_id

VIEWS = 3
# A file of a user: a PointNet++ with weights that it makes itself, and teachers of all kinds.
MINE = """
import numpy as np
import torch
from minipc.models.model import sizes
from minipc.torch.modules import PointNet2
from minipc.torch.teacher import ModuleTeacher


def network(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PointNet2(sizes("8/4:8,4/3:8,8:8", 3))


def teacher():
    return ModuleTeacher(network())


def other():
    return ModuleTeacher(network(4))


def first_numbers():
    return lambda points: points[:, 0] * [1, 2, 3]


def raises():
    raise KeyError("weights.pth")


def teacher_raises():
    def logits_of(points):
        return points @ np.ones(7)

    return logits_of


def bare_module():
    return network()


def number():
    return 3


def leaves():
    raise SystemExit(0)


not_a_function = 3
"""


@pytest.fixture
def mine(folder):
    (folder / "mine.py").write_text(MINE)
    return "mine.py"


class Net(torch.nn.Module):
    """(B, 3, P) -> (logits (B, 3), features), with what evaluation mode must change."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv1d(3, 8, 1), torch.nn.BatchNorm1d(8)
        self.dropout, self.fc = torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)

    def forward(self, x):
        assert not torch.is_grad_enabled() and not self.training
        features = self.norm(self.conv(x)).relu().amax(dim=2)
        return self.fc(self.dropout(features)), features


def first(returned):
    return returned[0]


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net()


def test_a_module_is_recorded_in_evaluation_mode_and_left_as_it_was(data, folder):
    module = net().train()
    module.norm.eval()  # a part that its user froze
    modes = [part.training for part in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    done = record_module(
        module, data, "r.h5", views=VIEWS, force=True, channels_first=True, output=first
    )
    assert [part.training for part in module.modules()] == modes and torch.is_grad_enabled()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert done.views == VIEWS and done.clouds == 96
    rows = RecordDataset("r.h5", data)
    module.eval()
    for item in (rows[0], rows[200]):
        with torch.no_grad():
            want = module(item.points.T[None])[0][0]
        # float16 as stored, and another batch: sums in another order
        torch.testing.assert_close(item.logits, want, rtol=2**-10, atol=1e-5)


def test_the_provenance_says_what_pytorch_computed_with(data, folder):
    record_module(net(), data, "r.h5", views=1, force=True, channels_first=True, output=first)
    with RecordReader("r.h5") as reader:
        assert reader.plan.teacher_id == module_id(net(), True)
        ((made,),) = ([each["made_with"] for each in reader.meta["provenance"]],)
    assert made["torch"] == torch.__version__ and made["torch_dtype"] == "float32"
    assert made["torch_tf32"] is False and made["torch_threads"] == torch.get_num_threads()
    assert made["torch_device"] and made["numpy"] == np.__version__


def test_the_id_names_weights_class_and_layout_and_nothing_else():
    assert module_id(net()) == module_id(net().train()) != module_id(net(), True)
    changed = net()
    with torch.no_grad():
        changed.fc.bias[0] += 1e-6
    half = net().bfloat16()
    assert len({module_id(net()), module_id(changed), module_id(half)}) == 3


def test_a_module_that_has_trained_on_is_another_teacher(data, folder):
    module = net()
    teacher = ModuleTeacher(module, channels_first=True, output=first)
    given = ModuleTeacher(module, channels_first=True, output=first, teacher_id="mine-1")
    record_module(teacher, data, "r.h5", views=1, force=True)
    with torch.no_grad():
        module.fc.bias[0] += 1
    with pytest.raises(DataError, match="teacher"):
        record_module(teacher, data, "r.h5", views=2, force=True)
    assert given.teacher_id == "mine-1"  # whoever names it says so himself


def test_a_path_may_be_a_pathlib_path(data, folder, mine):
    path = Path(data)
    record_module(net(), path, "r.h5", views=1, force=True, channels_first=True, output=first)
    assert verify("r.h5", path, None).passed


def test_precision_and_autocast_of_the_caller_do_not_reach_the_teacher():
    points = np.random.default_rng(0).standard_normal((32, 50, 3)).astype(np.float32)
    seen = []

    class Spy(Net):
        def forward(self, x):
            backends = torch.backends
            seen.append((backends.mkldnn.matmul.fp32_precision, backends.cudnn.conv.fp32_precision))
            return super().forward(x)

    spy = Spy()
    spy.load_state_dict(net().state_dict())
    teacher = ModuleTeacher(spy, channels_first=True, output=first)
    want = teacher(points)
    matmul = torch.backends.mkldnn.matmul
    was = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert teacher(points).tobytes() == want.tobytes()
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = was
    assert seen == [("ieee", "ieee")] * 2
    assert want.dtype == np.float32 and want.shape == (32, 3)


def test_a_batch_a_transform_and_a_module_in_float64_are_taken():
    points = np.random.default_rng(0).standard_normal((32, 50, 3)).astype(np.float32)
    want = ModuleTeacher(net(), channels_first=True, output=first)(points)
    made = ModuleTeacher(
        net().double(), transform=lambda x: x.transpose(1, 2), output=first, batch=8
    )
    assert made.made_with["torch_dtype"] == "float64"
    np.testing.assert_allclose(made(points), want, atol=1e-5)  # float32 beside float64


@pytest.mark.parametrize(
    "options, says",
    [
        ({"batch": 5}, "a batch that divides 32, got 5"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_options_that_cannot_be_are_one_line(options, says):
    with pytest.raises(UsageError, match=says) as caught:
        ModuleTeacher(net(), **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_module_or_returns_no_logits_is_one_line(data, folder):
    with pytest.raises(UsageError, match="expected a torch.nn.Module, got function"):
        record_module(first, data, "r.h5", views=1)
    with pytest.raises(DataError, match=r"returned a tuple of 2.*output=lambda returned"):
        record_module(net(), data, "r.h5", views=1, channels_first=True)
    with pytest.raises(UsageError, match="a text such as file.py:function, got 'net.py'"):
        record_module("net.py", data, "r.h5", views=1)
    with pytest.raises(UsageError, match="2 workers need a function"):
        record_module(net(), data, "r.h5", views=1, workers=2)
    with pytest.raises(UsageError, match="with_clouds needs both splits"):
        record_module(net(), read_clouds(data).train, "r.h5", views=1, with_clouds=True)
    with pytest.raises(UsageError, match="batch: the module is a ModuleTeacher already"):
        record_module(ModuleTeacher(net()), data, "r.h5", views=1, batch=8)
    assert not (folder / "r.h5").exists()


def test_a_device_says_what_the_processor_says():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device for PyTorch")
    points = np.random.default_rng(0).standard_normal((32, 50, 3)).astype(np.float32)
    want = ModuleTeacher(net(), channels_first=True, output=first)(points)
    teacher = ModuleTeacher(net(), channels_first=True, output=first, device="cuda")
    # float32 products in another order; TF32 would differ by 1e-3
    np.testing.assert_allclose(teacher(points), want, atol=1e-5)
    assert teacher.made_with["torch_cuda"] == torch.version.cuda


def test_two_workers_record_a_pointnet2_and_a_student_learns_from_a_data_loader(data, folder, mine):
    """The whole way in PyTorch, then back: the student is a model of minipc."""
    said = []
    done = record_module(
        f"{mine}:network", data, "two.h5", views=VIEWS, workers=2, force=True, say=said.append
    )
    assert done.views == VIEWS and done.resumed_shards == VIEWS, said  # all by the workers
    record_module("mine.py:teacher", data, "one.h5", views=VIEWS, force=True)
    with RecordReader("two.h5") as two, RecordReader("one.h5") as one:
        assert two.plan == one.plan
        for view in range(VIEWS):
            for found, want in zip(two.view(view), one.view(view), strict=True):
                # threads may add in another order; float16 as stored
                np.testing.assert_allclose(found, want, rtol=2**-10, atol=1e-3)

    torch.manual_seed(0)
    config = sizes("8-16:8", 3)
    student = PointNet(config)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-2)
    rows = torch.utils.data.DataLoader(
        RecordDataset("two.h5", data),
        batch_size=32,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )
    means = []
    for _ in range(4):
        losses = []
        for batch in rows:
            value = loss(student(batch.points), batch.label, batch.logits, kd_weight=0.9)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            losses.append(value.item())
        means.append(np.mean(losses))
    assert means[-1] < 0.9 * means[0]
    described = read_clouds(data).train.described
    write_model("student.h5", from_state_dict(student.state_dict(), config, described))
    again = to_module(read_model("student.h5"))
    assert isinstance(again, PointNet) and module_id(again) != module_id(PointNet(config))


# minipc verify --teacher file.py:function


@pytest.fixture
def recorded(data, mine):
    """record.h5, by mine.py:teacher."""
    record_module("mine.py:teacher", data, "record.h5", views=VIEWS, force=True)
    return "record.h5"


def test_verify_runs_the_teacher_that_a_function_makes(recorded, data, say, folder, monkeypatch):
    code, out, err = say(
        "verify", recorded, data, "--teacher", "mine.py:teacher", "--sample", "all", "--json"
    )
    told = json.loads(out)
    assert code == 0 and told["passed"] and told["sampled"] == VIEWS * 96, err
    assert told["agreement"] == 1 and told["bitwise"] is False and "promises" in told["why"]
    (folder / "package").mkdir()
    (folder / "package" / "own.py").write_text(MINE)
    assert say("verify", recorded, data, "--teacher", "package.own:teacher")[0] == 0
    monkeypatch.chdir(folder / "package")
    assert say("verify", "../record.h5", f"../{data}", "--teacher", "../mine.py:teacher")[0] == 0


def test_a_function_of_another_teacher_is_refused_by_its_id_or_fails_by_its_logits(
    recorded, data, say
):
    code, _, err = say("verify", recorded, data, "--teacher", "mine.py:other")
    assert code == 3 and "mine.py:other: is not the teacher of record.h5" in err
    code, _, err = say("verify", recorded, data, "--teacher", "mine.py:first_numbers")
    assert code == 4 and "hold other logits than the teacher computes" in err


@pytest.mark.parametrize(
    "teacher, code, says",
    [
        ("none.py:teacher", 2, "none.py: no such file"),
        ("no_such_package.mine:teacher", 2, "raised ModuleNotFoundError (No module named"),
        ("mine.py:missing", 2, "expected a function missing without arguments, found nothing"),
        ("mine.py:not_a_function", 2, "found int of that name"),
        ("broken.py:teacher", 2, "broken.py: cannot be imported: raised SyntaxError"),
        ("fails.py:teacher", 2, "fails.py: cannot be imported: raised ZeroDivisionError"),
        ("mine.py:raises", 3, "mine.py:raises: raised KeyError ('weights.pth')"),
        ("mine.py:leaves", 3, "mine.py:leaves: raised SystemExit (0)"),
        ("mine.py:number", 3, "returned int, which cannot be called"),
        ("mine.py:teacher_raises", 3, "its teacher raised ValueError"),
        ("mine.py:bare_module", 3, "return minipc.torch.teacher.ModuleTeacher(module)"),
    ],
)
def test_a_function_that_fails_is_one_line_with_its_cause(
    recorded, data, say, folder, teacher, code, says
):
    (folder / "broken.py").write_text("def teacher(:\n")
    (folder / "fails.py").write_text("1 / 0\n")
    found, _, err = say("verify", recorded, data, "--teacher", teacher)
    assert found == code and says in err and err.count("\n") == 1, err


def test_a_function_needs_no_torch(data, say, folder):
    """Any callable of NumPy arrays will do, recorded as it always was."""
    from minipc.record.recorder import record
    from minipc.record.recording import Recording

    clouds = read_clouds(data).train
    record(Recording(clouds, "by hand", "any.h5", views=2, force=True), lambda points: points[:, 0])
    (folder / "own.py").write_text("def teacher():\n    return lambda points: points[:, 0]\n")
    assert say("verify", "any.h5", data, "--teacher", "own.py:teacher")[0] == 0
