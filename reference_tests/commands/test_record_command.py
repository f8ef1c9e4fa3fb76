"""minipc record: adding views and clouds, and a record as the data of another."""

import json
import os
from dataclasses import replace

import numpy as np

from minipc.data.clouds import Splits, read_clouds, write_clouds
from minipc.record.reader import RecordReader
from reference_tests.commands.test_cli import QUICK


def test_views_and_clouds_are_added_by_the_same_command(data, say, folder):  # noqa: F811
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    command = ("record", data, "--teacher", "teacher")
    assert say(*command, "--views", 4, "--with-clouds", "--out", "whole.h5", "--quiet")[0] == 0
    for out, steps in {
        "a.h5": [(2,), (2, "--with-clouds"), (4,)],
        "b.h5": [(1, "--with-clouds"), (4, "--with-clouds")],
        "c.h5": [(4,), (1, "--with-clouds")],
    }.items():
        for views, *more in steps:
            code, text, err = say(*command, "--views", views, *more, "--out", out)
            assert code == 0, err
        assert f"{out}: 96 clouds x 4 views" in text
        assert (
            "training and test clouds embedded as float32, as int16 would lose bits: 25.8 kB"
            in text
        )
        assert (folder / out).read_bytes() == (folder / "whole.h5").read_bytes()
    code, text, _ = say(*command, "--views", 4, "--out", "whole.h5", "--json", "--quiet")
    assert json.loads(text)["clouds_as"] == "float32"


def test_clouds_that_fit_int16_are_said_to_be_lossless(data, say, folder):  # noqa: F811
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    write_clouds(
        "coarse.h5",
        Splits(
            *(
                replace(
                    clouds, points=(np.rint(clouds.points * 4096) + 0) / 4096
                )  # + 0: no -0.0, which int16 has not
                for clouds in read_clouds(data)
            )
        ),
    )
    code, out, err = say(
        "record", "coarse.h5", "--teacher", "teacher", "--views", 1, "--with-clouds"
    )
    assert code == 0 and "training and test clouds embedded as int16, lossless: 13.42 kB" in out, (
        err
    )


def test_a_record_with_clouds_is_the_data_of_another_and_grows_by_itself(data, say, folder):  # noqa: F811
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert (
        say("record", data, "--teacher", "teacher", "--views", 1, "--with-clouds", "--quiet")[0]
        == 0
    )
    os.remove(data)
    for out, more in (("other.h5", ["--logits", "float32"]), ("record.h5", [])):
        code, _, err = say(
            "record", "record.h5", "--teacher", "teacher", "--views", 2, "--out", out, *more
        )
        assert code == 0, err
    with RecordReader("record.h5") as one, RecordReader("other.h5") as two:
        assert one.views == two.views == 2 and one.clouds() and two.clouds() is None
        assert one.plan.points_hash == two.plan.points_hash
        np.testing.assert_allclose(
            one.view(1)[2], two.view(1)[2], rtol=2**-11
        )  # the rounding to float16
    code, _, err = say("record", "other.h5", "--teacher", "teacher")
    assert code == 3 and "is a record without clouds" in err and err.count("\n") == 1
