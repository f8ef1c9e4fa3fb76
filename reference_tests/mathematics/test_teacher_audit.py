"""The audit of a record's teacher: every number by its definition, and theorem 2.1 row by row."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from minipc.audit import bound
from minipc.audit.teacher import SAFE_B, audit_teacher, largest_safe_b
from minipc.data.clouds import read_clouds
from minipc.nn.losses import LossConfig, loss_forward, margins
from minipc.record.reader import RecordReader

QUICK = ("--epochs", "2", "--model", "6-8:6", "--quiet")


@pytest.fixture
def recorded(data, say):
    """record.h5: four views of the clouds by a small teacher."""
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 4, "--quiet", "--force")[0] == 0
    return "record.h5"


def test_the_numbers_of_a_teacher_are_their_definitions(recorded, data):
    labels = read_clouds(data).train.labels
    config = LossConfig(0.8, 0.2, 2.0, 0.1, "none")
    with RecordReader(recorded) as reader:
        found = audit_teacher(reader, labels, config)
        v = np.stack([reader.view(view)[2].astype(np.float64) for view in range(4)])
    chosen = v.argmax(axis=2)
    np.testing.assert_allclose(found.accuracy, (chosen == labels).mean(axis=1))
    most = np.array([np.bincount(chosen[:, n], minlength=3).max() for n in range(len(labels))])
    assert found.agreement == pytest.approx((most / 4).mean())
    assert found.unanimous == pytest.approx((most == 4).mean())
    p1, p = softmax(v, axis=2), softmax(v / 2, axis=2)
    assert found.confidence == pytest.approx(p1.max(axis=2).mean())
    assert found.entropy == pytest.approx(-(p1 * np.log(p1)).sum(axis=2).mean())
    assert found.entropy_at_T == pytest.approx(-(p * np.log(p)).sum(axis=2).mean())
    y = np.tile(0.9 * np.eye(3)[labels] + 0.1 / 3, (4, 1))
    v, u = v.reshape(-1, 3), np.roll(v, -1, axis=0).reshape(-1, 3)  # the next view
    terms, _ = loss_forward(v, y, v, u, np.ones(len(v)), config)
    assert found.unbounded == pytest.approx(float(terms.unbounded))
    assert found.raised == pytest.approx(float(terms.raised))
    assert sum(found.safe_b) == sum(found.safe_for_all) == 4 * len(labels)
    assert found.views == 4 and found.classes == 3 and found.clouds == len(labels)


def test_the_largest_safe_b_is_where_a_margin_reaches_zero():
    rng = np.random.default_rng(0)
    y, p, r = (
        np.eye(5)[rng.integers(0, 5, 50)],
        *softmax(3 * rng.standard_normal((2, 50, 5)), axis=2),
    )
    config = LossConfig(0.7, 0.0, 2.5)
    safe = largest_safe_b(y, p, r, config)
    below, above = (
        margins(y, p, r, factor * safe[:, None], config).min(axis=1)
        for factor in (1 - 1e-9, 1 + 1e-9)
    )
    assert (below >= 0).all() and (above < 0).all()
    assert largest_safe_b(y, p, np.eye(5)[np.zeros(50, int)], config) == pytest.approx(
        (0.3 * y[:, 0] + 0.7 * 2.5 * p[:, 0]) / 2.5
    )


def test_an_earlier_students_record_is_the_earlier_self(recorded, data, say):
    assert say("train", data, "--labels-only", "--out", "student", "--seed", 3, *QUICK)[0] == 0
    again = ("record", data, "--teacher", "student", "--quiet", "--force")
    assert say(*again, "--views", 4, "--out", "earlier.h5")[0] == 0
    code, out, err = say("audit", "--record", recorded, "--self-record", "earlier.h5", "--json")
    told = json.loads(out)
    assert code == 0 and told["self_target"] == "earlier.h5", err
    assert told["safe_b"] != json.loads(say("audit", "--record", recorded, "--json")[1])["safe_b"]
    assert say(*again, "--views", 3, "--out", "few.h5")[0] == 0
    code, _, err = say("audit", "--record", recorded, "--self-record", "few.h5")
    assert code == 3 and "3 views, expected 4" in err
    assert say(*again, "--views", 4, "--seed", 9, "--out", "elsewhere.h5")[0] == 0
    for verb in ("audit", "loss"):
        for other, says in (
            ("elsewhere.h5", "not in its teacher alone"),
            (recorded, "holds the teacher of"),
        ):
            code, _, err = say(verb, "--record", recorded, "--self-record", other)
            assert code == 3 and says in err and err.count("\n") == 1


def test_the_command_shows_a_histogram_and_refuses_other_data(recorded, say):
    code, out, _ = say("audit", "--record", recorded, "--temperature", 4)
    assert (
        code == 0
        and "teacher right in" in out
        and "whatever the earlier self" in out
        and "#" in out
    )
    assert sum("%" in line and " to " in line for line in out.splitlines()) >= 2 * (len(SAFE_B) - 1)
    code, out, _ = say("data", "make", "-o", "other.h5", "--seed", 1)
    assert code == 0
    code, out, err = say("audit", "other.h5", "--record", recorded)
    assert (code, out) == (3, "") and "was made from other data" in err


def test_loss_takes_the_rows_of_a_record_and_needs_two_views(recorded, data, say):
    code, out, _ = say("loss", "--record", recorded, "--self-weight", 0.2)
    assert (
        code == 0
        and "record.h5, view 0, 96 rows; earlier self: the teacher under the next view" in out
    )
    told = json.loads(say("loss", "--record", recorded, "--self-weight", 0.2, "--json")[1])
    assert told["classes"] == 3 and 0 <= told["worst_row"]["row"] < 96
    assert (
        say(
            "record",
            data,
            "--teacher",
            "teacher",
            "--views",
            1,
            "--quiet",
            "--force",
            "--out",
            "one.h5",
        )[0]
        == 0
    )
    code, _, err = say("loss", "--record", "one.h5")
    assert code == 3 and "one view" in err and "--self-record" in err
    code, out, _ = say("audit", "--record", "one.h5")
    assert code == 0 and "unbounded" not in out


def test_the_map_is_the_share_of_unbounded_rows():
    rows = bound.example_rows(40, 300)
    shares = bound.unbounded_shares(rows, 0.9, 0.0)
    y = np.eye(40)[rows.labels]
    for b, T in ((0.1, 4.0), (0.3, 3.0), (0.5, 8.0)):
        terms, _ = loss_forward(
            rows.v, y, rows.v, rows.u, np.ones(300), LossConfig(0.9, b, T, 0.0, "none")
        )
        assert shares[b, T] == pytest.approx(float(terms.unbounded))
    worst = bound.worst_row(rows, LossConfig(0.9, 0.2, 4.0, 0.0, "none"))
    assert worst.margins.min() < 0 and worst.safe_b < 0.2
    assert worst.unbounded == pytest.approx(shares[0.2, 4.0])
