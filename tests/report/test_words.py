"""Numbers and verdicts in words; the recipe as YAML, as a line and as a command."""

from __future__ import annotations

import doctest
import shlex

import pytest
import yaml

from laconic.report import recipe
from laconic.report.words import count, explained, factor, faster, headline, in_words, latency, points_at_most, size


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(999, "999 B"), (33_071, "33.1 kB"), (377_465, "377 kB"), (1_200_000, "1.20 MB"), (2.5e9, "2.50 GB")],
)
def test_sizes(value, wanted):
    assert size(value) == wanted


def test_counts_times_and_factors():
    assert [count(v) for v in (12, 288, 18_432, 2_379_008, 4e9)] == ["12", "288", "18.4 k", "2.38 M", "4.00 G"]
    assert [latency(v) for v in (0.0363, 0.147, 41.5, 2500)] == ["36.3 µs", "147 µs", "41.5 ms", "2.50 s"]
    assert [factor(v) for v in (1.684, 11.41, 114.2, 4321)] == ["1.68", "11.4", "114", "4,321"]


def test_a_bound_is_never_rounded_down():
    assert points_at_most(0.012886) == "1.29"
    assert points_at_most(0.01981) == "1.99"
    assert points_at_most(0.02) == "2.00"
    assert points_at_most(0.020001) == "2.01"


def test_the_certificate_as_a_sentence(kind):
    assert in_words(kind("certified")) == (
        "certified: top-1 accuracy fell by 0.50 points on 600 held-out samples; "
        "at 95 % confidence it fell by at most 1.29 points, 2.00 being allowed"
    )
    assert in_words(kind("uncertified")).startswith("NOT CERTIFIED: ")
    assert in_words(kind("agreement")).endswith("(this holdout was opened 3 times: not independent)")
    assert in_words(kind("running")).startswith("not certified yet: ")


def test_a_score_that_rose_is_said_to_have_risen(make_dossier):
    dossier = make_dossier()
    dossier["certificate"] |= {"drop": -0.03, "bound": -0.0111}
    assert headline(dossier)[2] == "top-1 rose by at least 1.11 points at 95 %"
    assert "rose by 3.00 points" in in_words(dossier)


@pytest.mark.parametrize(
    ("ratio", "wanted"),
    [
        ((1.5, 1.4, 1.6), "1.50x faster"),
        ((0.5, 0.4, 0.6), "2.00x slower"),
        ((1.02, 0.99, 1.05), "as fast as the original"),
    ],
)
def test_speed_whose_interval_holds_one_is_no_change(ratio, wanted):
    assert faster({"latency": dict(zip(("value", "low", "high"), ratio, strict=True))}) == wanted


def test_why_there_is_no_proof(make_dossier):
    dossier = make_dossier(status="uncertified")
    said = {}
    for name, drop, bound in (("fell", 0.03, 0.05), ("wide", 0.015, 0.026), ("order", 0.001, 0.01)):
        dossier["certificate"] |= {"drop": drop, "bound": bound}
        said[name] = explained(dossier)[-1]
    assert "more than the 2.00 points allowed" in said["fell"]
    assert "More held-out samples" in said["wide"]
    assert "an earlier one failed" in said["order"]


def test_a_score_between_0_and_1_has_no_counts(kind):
    assert not any("lost" in line for line in explained(kind("scored")))


HARD = [
    {
        "step": "PruneChannels",
        "layers": {"features.0": 0.5, "0": 0.25, "1.0": 1e-05, "no": 0.1, "a b: c": 0.2, "é\n#": 1.0},
    },
    {
        "step": "Quantize",
        "ranges": "minmax",
        "keep": ["a*", "- b"],
        "bits": 8,
        "symmetric": True,
        "other": None,
        "x": {},
    },
]


def test_yaml_reads_back_as_it_was():
    assert yaml.safe_load(recipe.to_yaml(HARD)) == HARD
    assert yaml.safe_load(recipe.to_yaml([])) == []


def test_the_command_is_one_the_command_line_takes(make_dossier):
    from laconic.cli import _parser

    dossier = make_dossier(trainable=False, keep=["head.*", "a b"])
    dossier["data"]["source"] = "my data/it's"
    words = shlex.split(recipe.command(dossier).replace("\\\n", ""))
    assert words[0] == "laconic"
    options = _parser().parse_args(words[1:])
    assert (options.model, options.data, options.budget) == ("zoo:digits-cnn-32", "my data/it's", "0")
    assert (options.max_drop, options.confidence, options.keep) == ("2%", "95%", ["head.*", "a b"])
    assert options.no_train


def test_goals_with_limits(make_dossier):
    dossier = make_dossier()
    dossier["goal"] |= {"minimize": "size", "max_latency": {"value": 5.0, "relative": False},
                        "max_size": {"value": 0.25, "relative": True}}  # fmt: skip
    said = recipe.goal_in_words(dossier)
    assert (
        said
        == "the smallest file, a drop of at most 2.00 points, latency at most 5 ms, file at most 25 % of the original's"
    )


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(recipe).failed == 0
