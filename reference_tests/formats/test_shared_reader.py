"""One open reader in processes, threads and a PyTorch DataLoader: every row is right.

The loader is tried where PyTorch is installed: skipped without it, unless MINIPC_REQUIRE_TORCH=1.
"""

import multiprocessing
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minipc.data.augment import AugmentConfig, apply, draw
from minipc.data.clouds import Clouds, Splits
from minipc.errors import DataError, UsageError
from minipc.record.reader import RecordReader
from minipc.record.recorder import record
from minipc.record.recording import Recording
from minipc.storage import files, hdf5

VIEWS, SEED, READS = 30, 3, 400
PATIENCE = 120  # seconds for a process that should take one: a deadlock ends as a failure
POINTS = np.random.default_rng(0).standard_normal((64, 9, 3)).astype(np.float32)
SPLITS = Splits(*[Clouds(POINTS, np.arange(64) % 5, tuple("abcde"), "z", "none")] * 2)

# a fork beside threads is what is tried here
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def teacher(points):
    return points[:, :5, 0]


def is_right(rows, view):
    """Return whether rows are (scale, shift, logits) of a view, all computed again."""
    params = draw(SEED, view, 0, len(POINTS), AugmentConfig())
    wanted = (*params, teacher(apply(POINTS, params)))
    return all(np.array_equal(found, value) for found, value in zip(rows, wanted, strict=True))


def clouds_are_right(reader):
    return all(np.array_equal(clouds.points, POINTS) for clouds in reader.clouds())


def reads_right(reader, seed):
    """Return whether READS reads at random are right, the clouds too."""
    views = np.random.default_rng(seed).integers(VIEWS, size=READS)
    return all(
        [is_right(reader.view(int(view)), int(view)) for view in views]
    ) and clouds_are_right(reader)


def exit_by(reader, seed):
    """End a process with 0 where all reads are right, 1 where one is wrong or raises."""
    try:
        os._exit(not reads_right(reader, seed))
    finally:
        os._exit(1)


def write_record(path, views=VIEWS, **more):
    record(
        Recording(
            SPLITS.train,
            "x of five points",
            str(path),
            views,
            seed=SEED,
            logits="float32",
            with_clouds=SPLITS,
            force=True,
            **more,
        ),
        teacher,
    )
    return str(path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return write_record(tmp_path_factory.mktemp("shared") / "record.h5")


@pytest.fixture
def path(kept, tmp_path):
    """A record of one's own, to be spoilt."""
    return shutil.copy(kept, tmp_path / "record.h5")


def ends_of(processes):
    """Start processes; return their exit codes, None for one that hangs."""
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def forked(reader, count=3):
    context = multiprocessing.get_context("fork")
    return [context.Process(target=exit_by, args=(reader, seed)) for seed in range(count)]


def test_processes_forked_from_an_open_reader_read_the_right_rows_and_so_does_the_parent(kept):
    with RecordReader(kept) as reader:
        with ThreadPoolExecutor(1) as beside:
            here = beside.submit(reads_right, reader, 9)
            assert ends_of(forked(reader)) == [0, 0, 0] and here.result()
        assert reads_right(reader, 10)  # what the children closed at their end was theirs


def test_threads_that_share_a_reader_read_the_right_rows(kept):
    with RecordReader(kept) as reader, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(reads_right, [reader] * 8, range(8)))


def test_a_fork_amid_threads_that_read_hangs_nowhere(kept):
    """What no thread holds no child waits for: libhdf5 and its lock have no part in a read."""
    with RecordReader(kept) as reader:
        stop = threading.Event()

        def read_on(view):
            while not stop.is_set():
                assert is_right(reader.view(view), view)

        with ThreadPoolExecutor(4) as pool:
            reading = [pool.submit(read_on, view) for view in range(4)]
            try:
                codes = [ends_of(forked(reader, 1)) for _ in range(10)]
            finally:
                stop.set()
            assert codes == [[0]] * 10 and [each.result() for each in reading] == [None] * 4


def test_h5py_itself_reads_the_right_rows_from_a_file_of_ours_after_a_fork(kept):
    """Each file object has its own position, though parent and children share the open file."""
    with files.guarded(kept, "record", 2) as whole, hdf5.hdf5_in(whole, kept) as file:
        shift = file["augment/shift"]

        def read(seed):
            views = np.random.default_rng(seed).integers(VIEWS, size=READS)
            right = [
                np.array_equal(shift[view], draw(SEED, view, 0, 64, AugmentConfig()).shift)
                for view in views
            ]
            os._exit(not all(right))

        context = multiprocessing.get_context("fork")
        assert ends_of([context.Process(target=read, args=(seed,)) for seed in range(3)]) == [
            0,
            0,
            0,
        ]


def test_a_reader_is_sent_to_a_spawned_process(kept):
    with RecordReader(kept) as reader, multiprocessing.get_context("spawn").Pool(2) as pool:
        assert (
            pool.starmap_async(reads_right, [(reader, seed) for seed in range(4)]).get(PATIENCE)
            == [True] * 4
        )


def test_a_pickled_reader_opens_the_same_file_wherever_it_is_opened(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RecordReader("record.h5") as reader:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        sent = pickle.dumps(reader)
    with pickle.loads(sent) as again:
        assert reads_right(again, 0) and (again.plan, again.meta) == (reader.plan, reader.meta)


def test_a_pickled_reader_refuses_a_file_that_is_another_one_by_now(path):
    with RecordReader(path) as reader:
        sent = pickle.dumps(reader)
    write_record(path, VIEWS + 1)
    with pytest.raises(DataError, match="is not the record that was open.*open it again"):
        pickle.loads(sent)
    with open(path, "r+b") as file:
        file.seek(9000)
        file.write(b"spoilt")
    with pytest.raises(DataError, match="is damaged"):
        pickle.loads(sent)


def test_a_reader_that_was_closed_says_so(kept):
    reader = RecordReader(kept)
    reader.close()
    for read in (lambda: reader.view(0), reader.clouds, lambda: pickle.dumps(reader)):
        with pytest.raises(
            UsageError, match="record.h5: this reader was closed; open the record again"
        ):
            read()


def test_a_record_that_is_cut_while_it_is_open_is_neither_read_as_zeros_nor_to_be_made_again(path):
    with RecordReader(path) as reader:
        os.truncate(path, 20_000)
        with pytest.raises(
            DataError, match="became shorter while it was read.*minipc info"
        ) as caught:
            reader.view(VIEWS - 1)
    assert "make" not in str(caught.value) and "\n" not in str(caught.value)


def test_values_that_are_misread_once_send_nobody_to_make_the_record_again_at_once(
    kept, monkeypatch
):
    with RecordReader(kept) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(
                files.os, "pread", lambda fd, size, at: b"\xff" * size
            )  # a machine that fails: NaN
            with pytest.raises(
                DataError, match="NaN or infinite values; run the same command once more, and make"
            ):
                reader.view(0)
        assert is_right(reader.view(0), 0)


class Rows:
    """The rows of a record as a PyTorch data set: item i is cloud i mod N of view i div N."""

    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return VIEWS * len(POINTS)

    def __getitem__(self, item):
        view, cloud = divmod(item, len(POINTS))
        scale, shift, logits = self.reader.view(view)
        return item, scale[cloud], shift[cloud], logits[cloud]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize(
    "workers, how, shuffle",
    [
        (0, None, True),
        (2, "fork", False),
        (2, "fork", True),
        (4, "fork", True),
        (2, "spawn", True),
    ],
)
def test_a_torch_data_loader_serves_every_row_right_in_each_epoch(
    torch, kept, workers, how, shuffle
):
    with RecordReader(kept) as reader:
        wanted = [reader.view(view) for view in range(VIEWS)]
        assert all(is_right(rows, view) for view, rows in enumerate(wanted))
        scale, shift, logits = (np.concatenate(each) for each in zip(*wanted, strict=True))
        loader = torch.utils.data.DataLoader(
            Rows(reader),
            batch_size=48,
            num_workers=workers,
            shuffle=shuffle,
            persistent_workers=workers > 0,
            multiprocessing_context=how,
        )
        for _ in range(2):
            seen = []
            for items, *rows in loader:
                items = items.numpy()
                seen += items.tolist()
                for found, value in zip(rows, (scale, shift, logits), strict=True):
                    np.testing.assert_array_equal(found.numpy(), value[items])
            assert (
                sorted(seen) == list(range(VIEWS * len(POINTS)))
                and (seen != sorted(seen)) == shuffle
            )
