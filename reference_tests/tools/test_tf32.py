"""TF32 as its stand-in rounds it, and a model whose products lose those bits."""

import re

import numpy as np

from minipc.data.shapes import built_in_shapes
from minipc.models.file import new_model, write_model
from minipc.models.model import sizes
from reference_tests.tools import tf32


def test_ten_bits_behind_the_point_stay_and_ties_go_away_from_zero():
    step = 2.0**-10
    x = [1 + step, 1 + step / 2, 1 + step / 4, -1 - step / 2, 0.0, 3e38, -(2.0**-126)]
    expected = [1 + step, 1 + step, 1.0, -1 - step, 0.0, 3e38, -(2.0**-126)]
    found = tf32.rounded(np.array(x, np.float32))
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=2.0**-11)
    assert (found[:5] == np.array(expected[:5], np.float32)).all()
    assert (tf32.rounded(found) == found).all()


def test_changes_are_of_the_row_and_the_class():
    exact = np.array([[4.0, 0.0], [0.0, 1.0]])
    change, kl, other = tf32.changes(exact, np.array([[3.0, 0.0], [0.0, 1.0]]))
    assert (change, other) == (0.25, 0) and kl > 0
    assert tf32.changes(exact, -exact)[2] == 2 and tf32.changes(exact, exact) == (0, 0, 0)


def test_a_models_logits_change_by_more_than_float32_rounds_and_less_than_a_hundredth(
    tmp_path, monkeypatch, capsys
):
    splits = built_in_shapes()
    model = new_model(sizes("tiny", len(splits.train.class_names)), splits.train.described, 0)
    write_model(tmp_path / "model.h5", model)
    monkeypatch.setattr(tf32, "read_data", lambda path: splits)
    tf32.main(tmp_path / "model.h5", "shapes", "8")
    said = capsys.readouterr().out
    found = dict(re.findall(r"^(.+): largest change (\S+) of", said, re.MULTILINE))
    # 2^-11 for each operand of each layer, against 2^-24 of float32
    assert float(found["the textbook engine"]) < 1e-5 < float(found["TF32"]) < 1e-2
