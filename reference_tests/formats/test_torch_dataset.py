"""A record as a data set of PyTorch: every item is what minipc replays, whoever serves it."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minipc.data.augment import AugmentConfig, apply, draw
from minipc.data.clouds import Clouds, Splits, write_clouds
from minipc.errors import BackendError, DataError, UsageError
from minipc.models.model import net, sizes
from minipc.record.recorder import record
from minipc.record.recording import Recording
from reference_tests.tools.with_torch import torch

# isort: split
from minipc.torch.dataset import RecordDataset

VIEWS, SEED, N, P, K = 3, 7, 21, 40, 4
POINTS = np.random.default_rng(0).standard_normal((N, P, 3)).astype(np.float32)
LABELS = np.arange(N) % (K + 1) - 1  # -1: no label
SPLITS = Splits(*[Clouds(POINTS, LABELS, tuple("abcd"), "z", "none")] * 2)

# a fork beside the threads of torch is what is tried here
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def teacher(points):
    return points[:, :K, 0]


def write_record(path, views=VIEWS, logits="float16", with_clouds=SPLITS, **more):
    asked = Recording(
        SPLITS.train,
        "x of four points",
        str(path),
        views,
        seed=SEED,
        logits=logits,
        with_clouds=with_clouds,
        force=True,
        **more,
    )
    record(asked, teacher)
    return str(path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return write_record(tmp_path_factory.mktemp("bridge") / "record.h5")


def replayed(view, logits="float16"):
    """Return points (N, P, 3) and logits (N, K) float32 of one view, as minipc replays them."""
    points = apply(POINTS, draw(SEED, view, 0, N, AugmentConfig()))
    return points, teacher(points).astype(logits).astype(np.float32)


def assert_replayed(items, views=range(VIEWS), logits="float16"):
    """items: {row of the record: (points, label, logits)}, arrays."""
    assert sorted(items) == [view * N + cloud for view in sorted(views) for cloud in range(N)]
    for view in views:
        points, wanted = replayed(view, logits)
        for cloud in range(N):
            found = items[view * N + cloud]
            assert found[0].tobytes() == points[cloud].tobytes()
            assert found[1] == LABELS[cloud]
            assert found[2].tobytes() == wanted[cloud].tobytes()


@pytest.mark.parametrize("logits", ["float16", "float32"])
def test_every_item_is_the_replay_bit_for_bit(tmp_path, logits):
    data = RecordDataset(write_record(tmp_path / "r.h5", logits=logits))
    assert len(data) == VIEWS * N
    items = [data[i] for i in range(len(data))]
    one = items[0]
    assert one.points.dtype == one.logits.dtype == torch.float32 and one.groups == []
    assert one.points.shape == (P, 3) and one.logits.shape == (K,) and type(one.label) is int
    assert_replayed(
        {i.row: (i.points.numpy(), i.label, i.logits.numpy()) for i in items}, logits=logits
    )


def test_addcmul_is_not_the_replay():
    """One fused multiply-add a coordinate rounds once: simulated in float64, which holds both."""
    params = draw(SEED, 0, 0, N, AugmentConfig())
    scale, shift = (value[:, None].astype(np.float64) for value in params)
    fused = (POINTS * scale + shift).astype(np.float32)  # the product of two float32 is exact
    assert (fused != replayed(0)[0]).any()


def test_indices_are_those_of_a_sequence(kept):
    data = RecordDataset(kept)
    assert data[-1].row == VIEWS * N - 1 and data[np.int64(3)].row == 3
    assert torch.equal(data[torch.tensor(5)].points, data[5].points)
    for past in (VIEWS * N, -VIEWS * N - 1):
        with pytest.raises(IndexError):
            data[past]
    assert [item.row for item in data] == list(range(VIEWS * N))  # ends by that IndexError


def test_chosen_views_are_served_in_their_order(kept):
    data = RecordDataset(kept, views=[2, 0])
    assert [item.row // N for item in data] == [2] * N + [0] * N
    for wrong in (3, -1):
        with pytest.raises(UsageError, match=f"view {wrong}: expected 0 to 2"):
            RecordDataset(kept, views=[0, wrong])


@pytest.mark.parametrize("workers, how", [(0, None), (2, "fork"), (2, "spawn"), (1, "forkserver")])
def test_a_loader_serves_every_row_in_each_epoch_by_any_start_method(kept, workers, how):
    loader = torch.utils.data.DataLoader(
        RecordDataset(kept),
        batch_size=8,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=how,
        persistent_workers=workers > 0,
    )
    orders = []
    for _ in range(2):
        items = {}
        for batch in loader:
            assert batch.label.dtype == torch.int64
            arrays = (batch.points.numpy(), batch.label.tolist(), batch.logits.numpy())
            items |= dict(zip(batch.row.tolist(), zip(*arrays, strict=True), strict=True))
        orders.append(list(items))
        assert_replayed(items)
    assert orders[0] != orders[1]


def test_data_are_a_file_that_the_record_names_or_one_given_or_clouds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_record(tmp_path / "bare.h5", with_clouds=None, data_file="clouds.h5")
    with pytest.raises(DataError, match="clouds.h5 is not beside it"):
        RecordDataset(path)
    write_clouds("clouds.h5", SPLITS)
    want = RecordDataset("bare.h5")[5].points
    for data in ("clouds.h5", SPLITS.train):
        assert torch.equal(RecordDataset("bare.h5", data)[5].points, want)
    other = Clouds(POINTS + 1, LABELS, tuple("abcd"), "z", "none")
    with pytest.raises(DataError, match="was made from other data"):
        RecordDataset("bare.h5", other)


def test_a_pickled_one_opens_the_same_record_elsewhere_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_record("record.h5")
    data = RecordDataset("record.h5", views=[1])
    sent = pickle.dumps(data)
    assert len(sent) < POINTS.nbytes  # paths, no clouds
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = pickle.loads(sent)
    assert len(again) == N and torch.equal(again[4].points, data[4].points)
    write_record(tmp_path / "record.h5", VIEWS + 1)
    late = pickle.loads(sent)
    with pytest.raises(DataError, match="is not the record that the data set was made of"):
        late[0]


def test_what_is_no_record_is_one_line(tmp_path, kept):
    (tmp_path / "text.h5").write_text("no record")
    write_clouds(tmp_path / "clouds.h5", SPLITS)
    whole = Path(kept).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[:-100])
    for name in ("none.h5", "text.h5", "clouds.h5", "cut.h5"):
        with pytest.raises(DataError, match=name) as caught:
            RecordDataset(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [None, SPLITS.train], ids=["in the record", "in memory"])
def test_items_carry_the_groups_of_the_stored_clouds(tmp_path, given):
    path = write_record(tmp_path / "r.h5")
    config = sizes("16/6:8,4/3:8,8:8", K)
    data = RecordDataset(path, given, config=config)
    wanted = net(config).prepare(config, POINTS)
    loader = torch.utils.data.DataLoader(data, batch_size=N, num_workers=0)
    for batch in loader:  # each batch is one view
        assert len(batch.groups) == len(wanted)
        for found, want in zip(batch.groups, wanted, strict=True):
            assert found.dtype == torch.int64 and np.array_equal(found.numpy(), want)


def test_without_torch_the_bridge_says_how_to_install_it():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import minipc, minipc.torch\n"
        "try:\n    import minipc.torch.dataset\n"
        "except Exception as reason:\n    print(type(reason).__name__, reason.exit_code, reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        f"{BackendError.__name__} 5 minipc.torch: PyTorch is not installed"
    )
    assert "pip install -e '.[torch]'" in done.stdout and done.stdout.count("\n") == 1


def test_nothing_else_of_minipc_loads_torch():
    code = "import sys, minipc.cli.main, minipc.verbs.verify, minipc.verbs.record, minipc.torch; "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
