"""`minipc compare`: the statistics against numbers typed by hand, studies, and what is refused."""

import json
import os
import shutil
import xml.etree.ElementTree as tree
from dataclasses import replace
from math import isclose, sqrt
from pathlib import Path

import numpy as np
import pytest
from conftest import write_three_classes
from scipy import stats

from minipc.cli.compare import OF_ARMS, read_study
from minipc.cli.main import main
from minipc.cli.options import options_of
from minipc.cli.train import command as train_command
from minipc.data.clouds import UNLABELLED, Splits, read_clouds, write_clouds
from minipc.errors import DataError, UsageError
from minipc.models.file import model_id, read_model
from minipc.report import compare as report
from minipc.runs.compare import (
    arms_of,
    check_fair,
    compare,
    difference,
    mcnemar_exact,
    mean_class_accuracy,
    paired_error,
    read_outcome,
    reference_of,
    sentence,
    t_interval,
)
from minipc.runs.config import read_config
from minipc.verbs import compare as verb

ROOT = Path(__file__).parents[2]

# Float64 on a handful of numbers: some roundings of 1e-16 each, and of SciPy's quantile.
EXACT = {"rel": 1e-9, "abs": 1e-12}


def bits(*rows):
    """Return (seeds, n) bool of texts of 0 and 1."""
    return np.array([[digit == "1" for digit in row] for row in rows])


# The statistics


def test_the_interval_of_three_values_is_that_of_a_table_of_t():
    low, high = t_interval([1.0, 2.0, 3.0])
    # mean 2, sd 1, and 4.302653 is the 97.5 % point of t with 2 degrees of freedom in any table
    assert low == pytest.approx(2 - 4.302653 / sqrt(3), abs=1e-6)
    assert high == pytest.approx(2 + 4.302653 / sqrt(3), abs=1e-6)


def test_the_interval_is_that_of_scipys_paired_test():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5))
    wanted = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert t_interval(one - other) == pytest.approx(tuple(wanted), **EXACT)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (8, 1, 2 * (1 + 9) / 512), (4, 4, 1.0)],
)
def test_mcnemars_p_is_that_of_so_many_throws_of_a_coin(gained, lost, p):
    assert mcnemar_exact(gained, lost) == pytest.approx(p, **EXACT)
    assert mcnemar_exact(lost, gained) == pytest.approx(p, **EXACT)


def test_a_difference_is_paired_by_seed_and_by_cloud():
    right, other = bits("1110", "1111", "1100"), bits("1100", "1100", "0100")
    found = difference(right, other)
    assert found.per_seed == [0.25, 0.5, 0.25] and found.mean == pytest.approx(1 / 3, **EXACT)
    assert (found.gained, found.lost) == (4, 0)
    assert found.mcnemar == pytest.approx(2 / 16, **EXACT)
    assert found.interval == pytest.approx(t_interval([0.25, 0.5, 0.25]), **EXACT)
    # t 4.302653, sd of 1/4, 1/2, 1/4 is 1/sqrt(48): half a width of 0.358554
    assert found.interval[0] == pytest.approx(1 / 3 - 0.358554, abs=1e-6)
    assert found.verdict == "cannot be told from zero"


def test_the_order_of_seeds_matters_because_they_are_paired():
    right, other = bits("1111", "1000"), bits("1110", "0000")
    assert difference(right, other).interval is None  # one cloud more with either seed
    assert difference(right, other[::-1]).interval is not None


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [((3, 3, 4), "above"), ((-3, -3, -4), "below"), ((3, -3, 1), "cannot be told from zero")],
)
def test_the_verdict_is_where_the_interval_lies(changes, verdict):
    right = np.array([np.arange(100) < 50 + change for change in changes])
    other = np.array([np.arange(100) < 50] * 3)
    found = difference(right, other)
    low, high = found.interval
    assert (
        found.verdict
        == verdict
        == {(True, True): "above", (False, False): "below"}.get(
            (low > 0, high > 0), "cannot be told from zero"
        )
    )


def test_the_error_of_the_split_is_that_of_the_mean_of_paired_clouds():
    right, other = bits("1101"), bits("1000")
    # differences 0, 1, 0, 1: mean 1/2, variance 1/4, over 4 clouds
    assert paired_error(right, other) == pytest.approx(0.25, **EXACT)
    # the same clouds with another seed are no more clouds
    twice = paired_error(np.vstack([right, right]), np.vstack([other, other]))
    assert twice == pytest.approx(0.25, **EXACT)


def test_the_sentence_says_what_the_numbers_say():
    def said(*changes, clouds=100):
        right = np.array([np.arange(clouds) < 50 + change for change in changes])
        other = np.array([np.arange(clouds) < 50] * len(changes))
        return sentence("kd", "labels", difference(right, other))

    assert said(3, 3, 4) == (
        "kd is 3.33 points above labels, 95 % interval [+1.90, +4.77]: above zero"
    )
    assert said(-3, -3, -4).endswith("[-4.77, -1.90]: below zero")
    assert said(3, -3, 1).endswith(": cannot be told from zero")
    one = said(4)
    assert one.startswith("kd is 4.00 points above labels; one seed, so no interval:")
    # 4 of 100 clouds: sqrt(0.04 * 0.96 / 100)
    assert "1.96 points" in one and "zero" not in one
    assert "the same difference with every seed, so no interval" in said(2, 2)
    assert said(0, 0).startswith("kd has the accuracy of labels with every seed;")


def test_the_mean_class_accuracy_weighs_classes_alike():
    right, labels = bits("1100")[0], np.array(["a", "a", "a", "b"])
    assert mean_class_accuracy(right, labels) == pytest.approx((2 / 3 + 0) / 2, **EXACT)


def test_the_arm_to_compare_with_is_the_one_on_labels_alone():
    assert reference_of({"kd": False, "plain": True}) == "plain"
    assert reference_of({"smooth": True, "labels": True}) == "labels"
    with pytest.raises(UsageError, match="none of them is named labels"):
        reference_of({"smooth": True, "plain": True})
    with pytest.raises(UsageError, match="no run is on labels alone"):
        reference_of({"kd": False})


# Studies

STUDY = """
record = "record.h5"
seeds = [0, 1]

[common]
model = "8-16:8"
epochs = 2
batch-size = 16
lr = 0.01
warmup-steps = 4

[arms.kd]
kd-weight = 0.9
"""
QUICK = "--model 8-16:8 --epochs 2 --batch-size 16 --lr 0.01 --warmup-steps 4 --quiet".split()


def quietly(*words):
    """Run a command that must succeed."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0, words


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with clouds.h5, record.h5, study.toml, and the study trained in study/."""
    folder, here = tmp_path_factory.mktemp("study"), os.getcwd()
    os.chdir(folder)
    try:
        write_three_classes("clouds.h5")
        quietly("train", "clouds.h5", "--labels-only", "--out", "teacher", *QUICK)
        words = ("--views", 2, "--with-clouds", "--force", "--quiet")
        quietly("record", "clouds.h5", "--teacher", "teacher", *words)
        (folder / "study.toml").write_text(STUDY)
        quietly("compare", "study.toml", "--quiet", "--at-a-time", 2)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def way(made, tmp_path, monkeypatch):
    """A copy of the folder of made to stand in."""
    place = tmp_path / "way"
    shutil.copytree(made, place)
    monkeypatch.chdir(place)
    return place


def test_a_study_trains_ordinary_runs_and_adds_the_arm_on_labels(way):
    assert {path.name for path in (way / "study").iterdir()} == {
        *("labels-0", "labels-1", "kd-0", "kd-1"),
        *("compare.md", "compare.csv", "compare.json", "compare.svg", "report.html"),
    }
    for name in ("labels", "kd"):
        for seed in (0, 1):
            config = read_config(f"study/{name}-{seed}")
            assert config.training.seed == seed and config.training.epochs == 2
            assert config.labels_only == (name == "labels") and config.views == (0, 2)
    quietly("train", "--record", "record.h5", "--kd-weight", 0.9, "--seed", 1, "--out", "x", *QUICK)
    for name in ("run.json", "model.h5", "predictions.csv"):  # the bits of `minipc train`
        mine, its = ((way / run / name).read_bytes() for run in ("x", "study/kd-1"))
        assert mine == its, name


def test_the_same_command_again_trains_nothing_and_says_the_same(way, say):
    models = {path: path.stat().st_mtime_ns for path in way.glob("study/*/model.h5")}
    code, out, err = say("compare", "study.toml", "--json")
    assert code == 0 and "4 runs, 4 finished" in err
    values = json.loads(out)
    files = values.pop("files")
    assert len(models) == 4 and all(path.stat().st_mtime_ns == models[path] for path in models)
    assert values == json.loads((way / "study/compare.json").read_text())
    code, out, _ = say("compare", "study.toml")
    assert out.splitlines() == report.of_compare(values | {"files": files})
    for path, text in report.pages(values, "study").items():
        assert Path(path).read_text() == text


def test_the_values_are_those_of_the_runs_own_files(way):
    values = json.loads((way / "study/compare.json").read_text())
    assert [arm["arm"] for arm in values["arms"]] == ["labels", "kd"]
    for arm in values["arms"]:
        rows = [
            [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
            for run in arm["runs"]
        ]
        last = [run[-1]["test_accuracy"] for run in rows]
        # sums of 33 clouds: equal but for a rounding
        assert arm["accuracy"]["per_seed"] == pytest.approx(last, **EXACT)
        assert isclose(arm["accuracy"]["mean"], sum(last) / 2)
        assert isclose(arm["accuracy"]["sd"], abs(last[0] - last[1]) / sqrt(2), abs_tol=1e-12)
        best = [max(row["test_accuracy"] for row in run) for run in rows]
        assert arm["best_epoch_on_test_flatters"]["per_seed"] == best


def test_a_run_that_stopped_goes_on_where_it_stopped_and_ends_with_the_same_bits(way, say):
    whole = (way / "study/kd-1/model.h5").read_bytes()
    shutil.rmtree("study/kd-1")
    words = ("--kd-weight", 0.9, "--seed", 1, "--stop-after", 1, "--out", "study/kd-1")
    quietly("train", "--record", "record.h5", *words, *QUICK)
    code, _, err = say("compare", "study/kd-0", "study/kd-1", "study/labels-0", "study/labels-1")
    assert code == 3 and "study/kd-1: 1 of its 2 epochs are done" in err
    code, _, err = say("compare", "study.toml")
    assert code == 0 and "4 runs, 3 finished" in err
    assert (way / "study/kd-1/model.h5").read_bytes() == whole


def test_finished_runs_are_grouped_by_their_settings(way, say):
    runs = [f"study/{name}-{seed}" for seed in (1, 0) for name in ("kd", "labels")]
    code, out, _ = say("compare", *runs, "--json")
    wanted = json.loads((way / "study/compare.json").read_text())
    assert code == 0 and json.loads(out) == wanted
    assert {name: len(group) for name, group in arms_of([*map(read_outcome, runs)]).items()} == {
        "kd": 2,
        "labels": 2,
    }
    assert say("compare", *runs, "--out", "told")[0] == 0
    assert sorted(os.listdir("told")) == [
        *(f"compare.{end}" for end in ("csv", "json", "md", "svg")),
        "report.html",
    ]


def test_each_seed_of_an_arm_may_begin_from_a_run_of_its_own_seed(way, say):
    text = STUDY.replace("kd-weight = 0.9", 'kd-weight = 0.9\ninit = "study/kd-{seed}"')
    Path("after.toml").write_text(text.replace("arms.kd", "arms.after"))
    code, out, _ = say("compare", "after.toml", "--json")
    runs = [f"after/{arm}-{seed}" for arm in ("after", "labels") for seed in (0, 1)]
    told = [arm | {"files": None} for arm in json.loads(out)["arms"]]
    assert code == 0 and [len(arm["runs"]) for arm in told] == [2, 2]
    for seed in (0, 1):
        began = read_config(f"after/after-{seed}").init
        assert began.file == "study/kd-{seed}"
        assert began.model_id == model_id(read_model(f"study/kd-{seed}/model.h5"))
    # finished runs are one arm, though each began from another model
    code, out, _ = say("compare", *runs, "--json")
    assert code == 0 and [arm | {"files": None} for arm in json.loads(out)["arms"]] == told
    words = ("--kd-weight", 0.9, "--seed", 1, "--init", "study/kd-{seed}", "--out", "x")
    quietly("train", "--record", "record.h5", *words, *QUICK)
    for name in ("model.h5", "run.json"):
        assert Path("x", name).read_bytes() == Path("after/after-1", name).read_bytes()
    # and a run that began from a model that is there no more is another run
    shutil.copy("study/labels-1/model.h5", "study/kd-1/model.h5")
    code, _, err = say("compare", "after.toml")
    assert code == 2 and "after/after-1: was begun with other settings" in err
    assert "init.model_id" in err


def test_an_arm_that_begins_from_an_unfinished_run_is_said_so(way, say):
    shutil.rmtree("study/kd-1")
    words = ("--kd-weight", 0.9, "--seed", 1, "--stop-after", 1, "--out", "study/kd-1")
    quietly("train", "--record", "record.h5", *words, *QUICK)
    text = STUDY.replace("kd-weight = 0.9", 'kd-weight = 0.9\ninit = "study/kd-{seed}"')
    Path("after.toml").write_text(text.replace("arms.kd", "arms.after"))
    code, _, err = say("compare", "after.toml")
    assert code == 0 and "study/kd-1: only 1 of its 2 epochs are done" in err
    assert "study/kd-0: only" not in err


def test_an_arm_that_begins_from_one_run_is_one_arm_whatever_its_name_ends_with(way, say):
    text = STUDY.replace("kd-weight = 0.9", 'kd-weight = 0.9\ninit = "study/kd-1"')
    own = '\n[arms.own]\nkd-weight = 0.9\ninit = "study/kd-{seed}"\n'  # the same with seed 1 only
    Path("one.toml").write_text(text + own)
    code, out, _ = say("compare", "one.toml", "--json")
    found = {arm["arm"]: arm["accuracy"] for arm in json.loads(out)["arms"]}
    assert code == 0 and [*found] == ["labels", "kd", "own"]
    runs = [f"one/{arm}-{seed}" for arm in found for seed in (0, 1)]
    code, out, _ = say("compare", *runs, "--json")
    assert {arm["arm"]: arm["accuracy"] for arm in json.loads(out)["arms"]} == found
    assert "Not compared" not in Path("one/report.html").read_text()


def test_no_arm_is_lost_where_folders_have_the_same_name(way, say):
    os.makedirs("old")
    words = ("--record", "record.h5", "--kd-weight", 0.3, *QUICK)
    quietly("train", *words, "--out", "old/kd-0")
    quietly("train", *words, "--seed", 2, "--out", "run-2")
    quietly("train", "--record", "record.h5", "--labels-only", "--seed", 2, *QUICK, "--out", "run")
    for name in ("kd-0", "labels-0"):
        shutil.copytree(f"study/{name}", name)
    for runs, arms in (
        (["old/kd-0", "kd-0", "labels-0"], {"old/kd", "kd", "labels"}),
        (["kd-0", "old/kd-0", "labels-0"], {"old/kd", "kd", "labels"}),
        (["run-2", "run"], {"run-2", "run"}),
        (["run", "run-2"], {"run-2", "run"}),
    ):
        code, out, err = say("compare", *runs, "--json")
        assert code == 0, err
        assert {arm["arm"] for arm in json.loads(out.splitlines()[-1])["arms"]} == arms
        assert say("report", *runs, "--out", "page.html")[0] == 0
        page = Path("page.html").read_text()
        assert all(f"{name}</" in page for name in arms), runs


def test_a_study_counts_labelled_test_clouds_and_refuses_where_there_are_none(way, say):
    splits = read_clouds("clouds.h5")
    for name, known in (("some.h5", 20), ("none.h5", 0)):
        labels = splits.test.labels.copy()
        labels[known:] = UNLABELLED
        test = replace(splits.test, labels=labels)
        write_clouds(name, Splits(splits.train, test))
    text = STUDY.replace('record = "record.h5"', 'data = "some.h5"').replace(
        "[arms.kd]", "[arms.kd]\nlabels-only = true\nlr = 0.02"
    )
    text = text.replace("kd-weight = 0.9", "[arms.labels]\nlabels-only = true")
    Path("some.toml").write_text(text)
    code, out, err = say("compare", "some.toml", "--json")
    assert code == 0, err
    values = json.loads(out)
    rows = Path("some/kd-0/metrics.jsonl").read_text().splitlines()
    assert values["test_clouds"] == 20 < len(splits.test)
    arm = next(arm for arm in values["arms"] if arm["arm"] == "kd")
    assert arm["accuracy"]["per_seed"][0] == pytest.approx(
        json.loads(rows[-1])["test_accuracy"], **EXACT
    )
    Path("none.toml").write_text(text.replace("some.h5", "none.h5"))
    code, _, err = say("compare", "none.toml")
    assert code == 3 and "no test cloud is labelled" in err and not Path("none").exists()


def test_the_page_of_a_study_shows_its_arms_and_not_those_that_were_taken_out(way, say):
    Path("study.toml").write_text(STUDY + "\n[arms.more]\nkd-weight = 0.8\n")
    assert say("compare", "study.toml")[0] == 0
    assert "more-0" in Path("study/report.html").read_text()
    Path("study.toml").write_text(STUDY)
    assert say("compare", "study.toml")[0] == 0
    assert "more" not in Path("study/compare.md").read_text()
    page = Path("study/report.html").read_text()
    assert "more-0" not in page and "<h1>study</h1>" in page


def test_one_seed_has_no_interval(way, say):
    code, out, _ = say("compare", "study/kd-1", "study/labels-1", "--json")
    arm = json.loads(out)["arms"][1]
    assert code == 0 and arm["accuracy"]["sd"] is None
    assert arm["difference"]["interval"] is arm["difference"]["verdict"] is None
    assert "one seed, so no interval" in arm["difference"]["sentence"]


def test_the_drawing_is_xml_with_a_dot_for_each_seed_and_an_interval(way):
    values = json.loads((way / "study/compare.json").read_text())
    values["arms"][1]["arm"] = "a < b & c"
    values["arms"][1]["difference"]["interval"] = [-0.25, 0.5]
    root = tree.fromstring(report.svg(values))
    name = "{http://www.w3.org/2000/svg}"
    dots = [float(dot.get("cx")) for dot in root.iter(f"{name}circle")]
    zero, interval, mean = (
        [float(line.get(end)) for end in ("x1", "x2")] for line in root.iter(f"{name}line")
    )
    assert len(dots) == 2 and interval[0] < zero[0] < interval[1]
    scale = (interval[1] - interval[0]) / 0.75  # pixels for a share
    shares = values["arms"][1]["difference"]["per_seed"]
    # written to a tenth of a pixel
    assert dots == pytest.approx([zero[0] + scale * share for share in shares], abs=0.2)
    assert mean[0] == pytest.approx(np.mean(dots), abs=0.2)
    assert "a < b & c" in [text.text for text in root.iter(f"{name}text")]


def test_the_output_says_that_the_last_epoch_decides(way, say):
    for text in (say("compare", "study.toml")[1], (way / "study/compare.md").read_text()):
        assert "The last epoch decides, never the best; the test split chooses nothing." in text
        assert "best epoch (flatters)" in text


# What is refused


def test_runs_that_saw_something_else_are_refused(way, say):
    for words, said in [
        (("--record", "record.h5", "--views", "0:1"), "differ in views with seed 0 (0:1 and 0:2)"),
        (("--record", "record.h5", "--batch-size", 8), "differ in batch size"),
        (("--record", "record.h5", "--epochs", 1), "differ in epochs"),
        (("--record", "record.h5", "--val-fraction", 0.1), "differ in clouds held out"),
        (("--record", "record.h5", "--seed", 5), "has seeds 5, labels has 0"),
        (("clouds.h5", "--labels-only"), "differ in views"),
    ]:
        shutil.rmtree("other", ignore_errors=True)
        flags = [flag for flag in words if str(flag).startswith("--")]
        quick = list(QUICK)
        for flag in flags:
            if flag in quick:
                del quick[quick.index(flag) : quick.index(flag) + 2]
        assert say("train", *words, "--out", "other", *quick)[0] == 0
        code, out, err = say("compare", "other", "study/labels-0")
        assert (code, out) == (2, "") and said in err and err.count("\n") == 1, (words, err)


def test_other_clouds_and_other_views_are_refused_as_what_they_are(way):
    config = read_config("study/kd-0")
    for change, said in [
        ((config, 1), "seed of the views"),
        ((config.__class__(**{**config.__dict__, "clouds": {"x": 1}}), 0), "clouds .*other hashes"),
    ]:
        with pytest.raises(UsageError, match=f"a and b differ in {said}"):
            check_fair({"a": {0: (config, 0)}, "b": {0: change}})
    check_fair({"a": {0: (config, 0)}, "b": {0: (config, 0)}})


def test_files_of_a_run_that_do_not_belong_together_are_refused(way):
    place = way / "study/kd-0/predictions.csv"
    text = place.read_text()
    wrong = text.replace(",1,", ",0,", 1) if ",1,0." in text else text.replace(",0,", ",1,", 1)
    for content in (wrong, text.replace("right", "left"), "", text.splitlines()[0]):
        place.write_text(content)
        with pytest.raises(DataError, match="minipc train --resume --out study/kd-0"):
            read_outcome("study/kd-0")
    first, *lines = text.splitlines(keepends=True)
    place.write_text("".join([first, *lines[::-1]]))
    with pytest.raises(DataError, match="cloud 0: its line contradicts itself"):
        read_outcome("study/kd-0")
    place.unlink()
    with pytest.raises(DataError, match="is not there"):
        read_outcome("study/kd-0")
    quietly("compare", "study.toml", "--quiet")  # going on with the run writes it again
    assert place.read_text() == text


def test_predictions_of_fewer_clouds_are_refused_even_where_their_shares_agree(way):
    """Ten right clouds of ten have the accuracy of all of all."""
    kd, labels = (read_outcome(f"study/{name}-0") for name in ("kd", "labels"))
    with pytest.raises(DataError, match="33 in study/kd-0, 10 in study/labels-0"):
        compare({"kd": [kd], "labels": [labels._replace(right=labels.right[:10])]})


def test_a_changed_study_is_refused_and_changes_no_run(way, say):
    Path("study.toml").write_text(STUDY.replace("0.9", "0.8"))
    code, _, err = say("compare", "study.toml")
    assert code == 2 and "study/kd-0: was begun with other settings" in err
    assert "(other loss.kd_weight)" in err
    Path("study.toml").write_text(STUDY)
    shutil.rmtree("study/kd-0")
    shutil.copytree("study/kd-1", "study/kd-0")
    code, _, err = say("compare", "study.toml")
    assert code == 2 and "study/kd-0: was begun" in err and "(other training.seed)" in err
    shutil.rmtree("study/kd-0")
    Path("study/kd-0").mkdir()
    Path("study/kd-0/letter").touch()
    code, _, err = say("compare", "study.toml")
    assert code == 2 and "study/kd-0: exists already" in err


def test_a_run_that_fails_is_told_and_the_others_are_trained(way, say, monkeypatch):
    shutil.rmtree("study/labels-1")
    Path("study/kd-0/predictions.csv").unlink()
    Path("study/kd-0/checkpoint.h5").write_bytes(b"damaged")
    code, out, err = say("compare", "study.toml")
    assert code == 1 and out == "" and "study/kd-0: study/kd-0/checkpoint.h5" in err
    assert "1 of 4 runs did not finish (study/kd-0)" in err
    assert read_outcome("study/labels-1").config.training.seed == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds", "sedes"), "sedes: unknown key; known: data, record, seeds, common, arms"),
        (("[0, 1]", "[0, 0]"), "expected different integers"),
        (("[0, 1]", "[]"), "at least one"),
        (("[0, 1]", "[0, 1.5]"), "seeds: expected integers"),
        (("[0, 1]", "[true]"), "seeds: expected integers"),
        (("[0, 1]", "3"), "seeds: expected integers"),
        (("[0, 1]", "[-1]"), "seed: expected an integer from 0"),
        (("[arms.kd]", "[arms.'a/b']"), "arms.a/b: expected a name of letters"),
        (("[arms.kd]", "[arms.'..']"), "arms...: expected a name of letters"),
        (("[arms.kd]\nkd-weight = 0.9", "[arms]\nkd = 1"), "arms.kd: expected a table"),
        (("[arms.kd]", "[arms.labels]"), "[arms.labels]: is not on labels alone"),
        (("kd-weight = 0.9", "kd-wieght = 0.9"), "did you mean kd-weight?"),
        (("kd-weight = 0.9", "kd-weight = 'x'"), "[arms.kd]: kd-weight: 'x' is not a valid"),
        (("kd-weight = 0.9", "kd-weight = 2"), "[arms.kd]: kd weight: expected a from 0 to 1"),
        (("kd-weight = 0.9", "seed = 3"), "seed: seeds = [...] at the top sets it"),
        (("kd-weight = 0.9", "out = 'x'"), "out: no arm can set it"),
        (("kd-weight = 0.9", "labels-only = true\nkd-weight = 0.1"), "has no use for --kd-weight"),
        (("kd-weight = 0.9", "ema-decay = 0.5"), "--ema-decay has no use without --self-weight"),
        (("kd-weight = 0.9", "batch-size = 8"), "differ in batch size"),
        (("kd-weight = 0.9", "views = '0:9'"), "arm kd: views 0:9: expected"),
        (("kd-weight = 0.9", "labels-only = true"), "expected at least one beside"),
        (("kd-weight = 0.9", "[arms.b]"), "arm b: is the same training as arm kd"),
        (('record = "record.h5"', ""), "arm labels: train: name the data"),
        (('record = "record.h5"', "record = 3"), "record: expected the name of a file"),
        (("[common]", "[common"), "cannot be read as TOML"),
    ],
)
def test_a_wrong_study_ends_in_one_line_before_anything_is_trained(made, say, folder, change, said):
    assert change[0] in STUDY
    os.symlink(made / "record.h5", "record.h5")
    Path("wrong.toml").write_text(STUDY.replace(*change))
    code, out, err = say("compare", "wrong.toml")
    line = err.splitlines()[-1]
    assert (code, out, err.count("\n")) == (3 if "TOML" in said else 2, "", 1), err
    assert said in line and not os.path.exists("wrong")


def test_wrong_arguments_end_in_one_line(way, say):
    for words, code, said in [
        (("study.toml", "study/kd-0"), 2, "is a study; name it alone"),
        (("none.toml",), 3, "none.toml: cannot be read"),
        (("study/none",), 3, "study/none"),
        (("study/kd-0",), 2, "expected runs of at least two arms"),
        (("study/kd-0", "study/kd-0", "study/labels-0"), 2, "are the same run (kd, seed 0)"),
        (("study/kd-0", "study/labels-0", "--at-a-time", 2), 2, "--at-a-time goes with STUDY"),
        (("study.toml", "--out", "no/where"), 3, "there is no folder no"),
        (("study.toml", "--out", "clouds.h5"), 3, "clouds.h5: the folder cannot be made"),
    ]:
        found, out, err = say("compare", *words)
        assert (found, out, err.count("\n")) == (code, "", 1) and said in err, (words, err)


def test_a_study_is_its_file_whatever_the_variables_say(way, monkeypatch):
    before = read_study("study.toml")
    monkeypatch.setenv("MINIPC_LR", "0.5")
    monkeypatch.setenv("MINIPC_TEMPERATURE", "7")
    assert read_study("study.toml") == before
    assert before[0]["kd"]["loss"].temperature == 2 and before[0]["kd"]["config"].lr == 0.01


def test_every_option_of_train_is_an_arms_or_says_how_to_run():
    how = "data out dry-run no-report resume stop-after seed backend threads quiet verbose json"
    how += " config"
    names = {name.replace("-", "_") for name in options_of(train_command)}
    assert names - {name.replace("-", "_") for name in how.split()} == OF_ARMS


def test_the_example_study_can_be_read():
    arms, seeds = read_study(str(ROOT / "examples" / "study.toml"))
    assert len(seeds) >= 3 and reference_of({n: a["labels_only"] for n, a in arms.items()})


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/studies").rglob("*.toml")), ids=lambda p: p.stem
)
def test_the_studies_of_the_documentation_can_be_read_and_have_their_command(path):
    arms, seeds = read_study(str(path))
    assert seeds and reference_of({name: asked["labels_only"] for name, asked in arms.items()})
    command = f"minipc compare {path.relative_to(ROOT)} --out {path.stem}\n"
    assert command in (path.parent / "README.md").read_text()


def test_python_takes_the_same_study(way):
    arms, seeds = read_study("study.toml")
    values = verb.study(arms, seeds, "study")
    values.pop("files")
    assert json.loads(json.dumps(values)) == json.loads((way / "study/compare.json").read_text())
