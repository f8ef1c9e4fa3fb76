"""The verbs on files: read, check that the files belong together, compute, write.

What `minipc record`, `verify` and `eval` do, without click, for a script or a notebook
(`predict`: predictions.py, `train`: runs.py).  The mathematics is elsewhere: recorder.record() and
evaluate.metrics() know no paths.
"""

import os
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np

from minipc.backend import blas_on_one_thread, default_threads, load
from minipc.data.augment import AugmentConfig
from minipc.data.clouds import check_same_kind, read_clouds
from minipc.distil.evaluate import metrics, predict, vote
from minipc.errors import DataError
from minipc.models.file import model_id, on_module, read_model
from minipc.models.pointnet import count
from minipc.record.parallel.processes import run_workers, use_device
from minipc.record.plan import MOST_ROWS
from minipc.record.reader import RecordReader
from minipc.record.recorder import forecast, pointnet_teacher, quiet, record
from minipc.record.verify import verify
from minipc.runs.folder import model_path
from minipc.storage.files import kind_of


def find_file(given, hint, near, what):
    """Return the path given, or where the file named hint lies: beside near, one folder up, or
    here.

    (A model lies in a run folder.)  what names the option to pass.  Raises DataError.
    """
    if given is not None:
        return given
    beside = os.path.dirname(near)
    places = (
        [os.path.join(beside, hint), os.path.join(beside, os.pardir, hint), hint] if hint else []
    )
    found = next((os.path.normpath(place) for place in places if os.path.exists(place)), None)
    if found is None:
        raise DataError(
            f"{near}: its file {hint or '(not named in it)'} is not beside it and not here; pass "
            f"{what}"
        )
    return found


def find_data(data, hint, near, points_hash=None):
    """Return the data file to use and its Splits; data and hint as in find_file.

    A file that was found and not given must have the training points of points_hash (None: the
    caller compares).  Raises DataError.
    """
    path = find_file(data, hint, near, "DATA")
    splits = read_data(path)
    if data is None and points_hash is not None and splits.train.points_hash != points_hash:
        raise DataError(f"{path}: holds other training points than {near} was made from; pass DATA")
    return path, splits


def clouds_of(data, reader, hint, near):
    """Return the path and Splits of data, or of what an open record holds, or of the file named
    hint.

    reader: a RecordReader or None; hint and near as in find_file.  Raises DataError.
    """
    carried = reader.clouds() if data is None and reader else None
    return find_data(data, hint, near) if carried is None else (reader.path, carried)


def read_data(path):
    """Return the Splits of a clouds file, or of a record that carries its clouds.  Raises
    DataError.
    """
    if os.path.isdir(path):
        is_run = os.path.exists(os.path.join(path, "run.json"))
        raise DataError(
            f"{path}: is a run, not data; go on with it by: minipc train --resume --out {path}"
            if is_run
            else f"{path}: is a folder; pack it first: minipc data pack {path} -o FILE.h5"
        )
    if kind_of(path) != "record":
        return read_clouds(path)
    with RecordReader(path) as reader:
        splits = reader.clouds()
    if splits is None:
        raise DataError(
            f"{path}: is a record without clouds; name its data file, or add them to it: "
            f"minipc record DATA --teacher MODEL --out {path} --with-clouds"
        )
    return splits


def record_files(
    data,
    teacher,
    out,
    *,
    views,
    seed=0,
    logits="float16",
    with_clouds=False,
    force=False,
    xp,
    engine="fused",
    threads=None,
    share=None,
    workers=1,
    scheduler=None,
    say=quiet,
    progress=quiet,
):
    """Record the model in file or run folder teacher on the training clouds of file data: Recorded,
    or Share.

    share as in recorder.record.  workers: processes that compute shares before this one does what
    they left and finishes; each with its part of the threads, or with one device.  scheduler:
    address of a Dask scheduler whose workers compute the shards.
    """
    splits, model = _matching(data, teacher)
    if workers > 1:
        on_host = xp is np
        arguments = dict(
            views=views,
            seed=seed,
            logits=logits,
            with_clouds=with_clouds,
            force=force,
            engine=engine,
            threads=max((threads or default_threads(xp)) // workers, 1),
        )
        parts, total = f"{out}.parts", views * -(-len(splits.train) // MOST_ROWS)

        def look():
            found = os.listdir(parts) if os.path.isdir(parts) else []
            progress(
                sum(name.startswith("view-") and name.endswith(".h5") for name in found),
                total,
                "recording",
            )

        devices = 0 if on_host else xp.cuda.runtime.getDeviceCount()
        run_workers(
            partial(_record_share, data, teacher, out, devices, arguments),
            workers,
            say=say,
            progress=look,
        )
    with blas_on_one_thread(say):
        done = record(
            splits.train,
            pointnet_teacher(on_module(model, xp), engine),
            model_id(model),
            out,
            views,
            seed=seed,
            logits=logits,
            force=force,
            xp=xp,
            threads=threads or default_threads(xp),
            engine=engine,
            data_file=os.path.basename(data),
            with_clouds=splits if with_clouds else None,
            share=share,
            say=say,
            elsewhere=None
            if scheduler is None
            else _elsewhere(scheduler, data, teacher, xp, engine),
            progress=progress,
        )
    trained = model.trained
    if trained.get("epochs", 0) < trained.get("of_epochs", 0):
        say(f"{teacher}: only {trained['epochs']} of its {trained['of_epochs']} epochs are done")
    if trained.get("views_seed") == seed and trained.get("points_hash") == splits.train.points_hash:
        seen = min(views, trained.get("epochs", 0))
        say(
            f"{teacher}: learnt from {seen} of these views, so its accuracy on them flatters; "
            "--seed draws others"
        )
    return done


def _record_share(data, teacher, out, devices, arguments, number, count):
    """Compute one share of a recording, in a process of its own; devices: CUDA devices to choose
    from, or 0.
    """
    if devices:
        use_device(number, devices)
    record_files(
        data,
        teacher,
        out,
        xp=load("cupy" if devices else "numpy"),
        share=(number, count),
        **arguments,
    )


def _elsewhere(scheduler, data, teacher, xp, engine):
    """Return what recorder.record takes for elsewhere, on a Dask scheduler."""
    from minipc.record.parallel.scheduler import on_scheduler

    read = partial(_clouds_and_model, os.path.abspath(data), os.path.abspath(teacher))
    return partial(on_scheduler, scheduler, read, xp.__name__, engine)


def _clouds_and_model(data, teacher):
    splits, model = _matching(data, teacher)
    return splits.train, model


def forecast_files(data, teacher, out, *, views, seed=0, logits="float16", with_clouds=False):
    """Return the Forecast of record_files with these arguments; no file is changed."""
    splits, model = _matching(data, teacher)
    return forecast(
        splits.train,
        model_id(model),
        out,
        views,
        seed=seed,
        logits=logits,
        data_file=os.path.basename(data),
        with_clouds=splits if with_clouds else None,
    )


def _matching(data, teacher):
    """Return the Splits in data and the Model in teacher.  Raises DataError unless they are of one
    kind.
    """
    splits, path = read_data(data), model_path(teacher)
    model = read_model(path)
    check_same_kind(splits.train.described, model.described, data, path)
    return splits, model


def eval_files(model, data, *, votes=0, teacher=None, xp, engine="fused", threads=None):
    """Evaluate the model in a file or run folder on the test split of data: values for JSON.

    votes: also by voting over so many fixed views; teacher: a model whose arg-max is compared.
    """
    path = model_path(model)
    read = read_model(path)
    data, splits = find_data(
        data, read.trained.get("data_file"), path, read.trained.get("points_hash")
    )
    test, threads = splits.test, threads or default_threads(xp)
    check_same_kind(test.described, read.described, data, path)
    on_device = on_module(read, xp)
    logits = predict(on_device, test.points, xp, threads, engine)
    found = metrics(test.labels, logits)
    size = count(read.config, test.points.shape[1])
    values = {
        "model": path,
        "data": data,
        "clouds": len(test),
        **found._asdict(),
        "parameters": size.parameters,
        "macs_per_cloud": size.macs,
        "class_accuracy": {
            name: float(found.confusion[i, i] / found.confusion[i].sum())
            for i, name in enumerate(test.class_names)
            if found.confusion[i].sum()
        },
        "confusion": found.confusion.tolist(),
    }
    if votes:
        voted = metrics(
            test.labels, vote(on_device, test.points, votes, AugmentConfig(), xp, threads, engine)
        )
        values["voted"] = {"votes": votes, **voted._asdict(), "confusion": voted.confusion.tolist()}
    if teacher is not None:
        teacher_path = model_path(teacher)
        its = read_model(teacher_path)
        check_same_kind(test.described, its.described, data, teacher_path)
        theirs = predict(on_module(its, xp), test.points, xp, threads, engine)
        values["teacher"] = teacher_path
        values["teacher_agreement"] = float((theirs.argmax(axis=1) == logits.argmax(axis=1)).mean())
    return values


def verify_files(
    record_path,
    data,
    teacher,
    *,
    sample=1024,
    xp,
    engine="fused",
    threads=None,
    say=quiet,
    progress=quiet,
):
    """Return the record.verify.Verified of a record, its data (as in find_data) and a teacher, or
    None for none.

    sample: rows over which the teacher runs again, None for all.  Raises DataError where record,
    data and teacher do not belong together.
    """
    with RecordReader(record_path) as reader, blas_on_one_thread(say):
        clouds = clouds_of(data, reader, reader.meta["data_file"], record_path)[1].train
        logits_of = None
        if teacher is not None:
            model = read_model(model_path(teacher))
            if model_id(model) != reader.plan.teacher_id:
                raise DataError(
                    f"{teacher}: is not the teacher of {record_path}, which is "
                    f"{reader.plan.teacher_id[:16]}, "
                    f"found {model_id(model)[:16]}; pass the model that was recorded"
                )
            logits_of = pointnet_teacher(on_module(model, xp), engine)
        return verify(
            reader,
            clouds,
            logits_of,
            sample,
            xp=xp,
            threads=threads or default_threads(xp),
            engine=engine,
            progress=progress,
        )


def audit_record(record_path, data, config, self_record=None):
    """Return the audit.teacher.TeacherAudit of a record under a LossConfig; data as in find_data.
    Raises DataError.
    """
    from minipc.audit.teacher import (
        audit_teacher,
    )  # here and below: with scipy.special, which no other verb needs

    with _recorded(record_path, data, self_record) as (reader, labels, earlier):
        return audit_teacher(reader, labels, config, earlier)


def recorded_rows(record_path, data, self_record=None):
    """Return the audit.bound.Rows of the first view of a record; data as in find_data.  Raises
    DataError.
    """
    from minipc.audit.bound import Rows
    from minipc.audit.teacher import earlier_self, named_self

    with _recorded(record_path, data, self_record) as (reader, labels, earlier):
        u = earlier_self(reader, earlier, 0)
        if u is None:
            raise DataError(
                f"{record_path}: one view, so nothing to take for an earlier self; pass "
                "--self-record"
            )
        what = (
            f"{record_path}, view 0, {len(labels)} rows; earlier self: "
            f"{named_self(reader, earlier)}"
        )
        return Rows(labels, reader.view(0)[2].astype(np.float64), u, what)


@contextmanager
def _recorded(record_path, data, self_record):
    """Give an open record, the labels (N,) of its clouds, and the open second record or None."""
    with RecordReader(record_path) as reader, ExitStack() as stack:
        clouds = clouds_of(data, reader, reader.meta["data_file"], record_path)[1].train
        reader.check_belongs(clouds)
        earlier = self_record and stack.enter_context(RecordReader(self_record))
        if earlier:
            earlier.check_beside(reader)
            if earlier.views < reader.views:
                raise DataError(
                    f"{self_record}: {earlier.views} views, expected {reader.views}; record as many"
                )
        yield reader, clouds.labels, earlier
