"""Which trial is best, which may win at all, and which are worth showing to the holdout."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.goal import Goal
from laconic.search.choose import FRONT, Judge
from laconic.steps import STEPS
from tests.search.world import judge, made, original

Q, P = STEPS["Quantize"], STEPS["PruneChannels"]
A, B, C = Q(), Q(ranges="minmax"), Q(ranges="percentile")

# ----------------------------------------------------------------------------------------------------------- may it win


def test_costs_are_fractions_of_the_original() -> None:
    trial = made(A, speedup=2.0, size=0.25, macs=0.125)
    assert judge("latency").cost(trial) == pytest.approx(0.5)
    assert judge("size").cost(trial) == pytest.approx(0.25)
    assert judge("macs").cost(trial) == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("trial", "minimize"),
    [
        (made(A, speedup=0.99), "latency"),  # slower than the original
        (made(A, speedup=1.0), "latency"),
        (made(A, size=1.01), "size"),
        (made(A, macs=1.0), "macs"),
        (made(A, error="it does not load"), "latency"),
        (made(A, speedup=None, drop=None, rejected="its drop was clear"), "latency"),
        (made(A, speedup=None), "latency"),  # not timed
        (made(A, rejected="its timing stayed noisy"), "latency"),
        (original(speedup=1.02), "latency"),  # the original, timed against itself on a busy machine
    ],
    ids=["slower", "as fast", "larger", "as many MACs", "failed", "given up", "not timed", "noisy", "the original"],
)
def test_what_cannot_win(trial: object, minimize: str) -> None:
    judging = judge(minimize)
    assert not judging.eligible(trial)
    assert not judging.passes(trial)
    assert judging.front([trial, made(B, speedup=1.5, size=0.5, macs=0.5)]) == [
        made(B, speedup=1.5, size=0.5, macs=0.5)
    ]


def test_a_noisy_timing_matters_only_where_time_does() -> None:
    noisy = made(A, rejected="its timing stayed noisy", speedup=0.9)
    assert judge("size").passes(noisy)
    assert not judge("size", max_latency="200%").passes(noisy)


def test_passing_means_that_the_holdout_is_expected_to_certify() -> None:
    assert judge(max_drop=0.02).passes(made(A, drop=0.01, bound=0.02))
    assert not judge(max_drop=0.02).passes(made(A, drop=0.01, bound=0.0201))
    assert judge(max_drop=0.02).holds(made(A, drop=0.01, bound=0.02, speedup=0.5))  # slow, but above the floor
    assert not judge(max_drop=0.02).holds(made(A, error="it does not load"))


@pytest.mark.parametrize(
    ("limits", "trial", "kept"),
    [
        ({"max_size": "50%"}, made(A, size=0.5), True),
        ({"max_size": "50%"}, made(A, size=0.501), False),
        ({"max_size": "500kB"}, made(A, size=0.5), True),
        ({"max_size": "499kB"}, made(A, size=0.5), False),
        ({"max_latency": "1ms"}, made(A, speedup=2.0), True),
        ({"max_latency": "1ms"}, made(A, speedup=1.9), False),
        ({"max_latency": "50%", "max_size": "50%"}, made(A, speedup=2.0, size=0.6), False),
        ({"max_latency": "50%", "max_size": "60%"}, made(A, speedup=2.0, size=0.6), True),
    ],
)
def test_limits(limits: dict[str, str], trial: object, kept: bool) -> None:
    assert judge(**limits).within_limits(trial) is kept
    assert judge(**limits).passes(trial) is kept


# ------------------------------------------------------------------------------------------------------ which is best


def test_the_fastest_is_best() -> None:
    slow, fast = made(A, speedup=1.5), made(B, speedup=2.0, size=0.9)
    assert judge().best([slow, fast]) is fast
    assert judge("size").best([slow, fast]) is slow


def test_none_of_none() -> None:
    assert judge().best([]) is None


def test_latencies_within_three_percent_are_ties_that_size_breaks() -> None:
    fastest, smaller, too_slow = (
        made(A, speedup=2.0, size=0.5),
        made(B, speedup=1.95, size=0.4),
        made(C, speedup=1.9, size=0.1),
    )
    assert judge().best([fastest, smaller, too_slow]) is smaller


def test_sizes_within_one_percent_are_ties_that_safety_breaks() -> None:
    smaller, safer = made(A, speedup=2.0, size=0.4, p=0.04), made(B, speedup=2.0, size=0.403, p=0.001)
    assert judge().best([smaller, safer]) is safer


def test_what_is_equal_in_all_is_decided_by_the_recipe_alone() -> None:
    first, second = sorted([made(A), made(B)], key=lambda t: t.recipe.key)
    assert judge().best([first, second]) is first
    assert judge().best([second, first]) is first


def test_improving_takes_more_than_a_tie() -> None:
    on = made(A, speedup=2.0, size=0.5)
    better = judge().improves
    assert better(made(B, speedup=2.1, size=0.9), on)
    assert not better(made(B, speedup=2.04, size=0.5), on)
    assert better(made(B, speedup=1.96, size=0.49), on)  # tied, and smaller by more than one percent
    assert not better(made(B, speedup=1.96, size=0.4955), on)
    assert not better(made(B, speedup=1.9, size=0.1), on)
    assert better(made(B), None)


trials = st.lists(
    st.builds(
        lambda i, speedup, size, drop, p, flaw: made(
            P(layers={f"l{i}": 0.5}), speedup=speedup, size=size, drop=drop, bound=drop, p=p, rejected=flaw
        ),
        st.integers(0, 10_000),
        st.floats(0.5, 4).map(lambda v: round(v, 3)),
        st.floats(0.05, 1.2).map(lambda v: round(v, 3)),
        st.floats(-0.01, 0.05),
        st.floats(0, 1),
        st.sampled_from([None, None, None, "its timing stayed noisy"]),
    ),
    max_size=30,
    unique_by=lambda t: t.recipe.key,
)
goals = st.sampled_from(
    [judge("latency"), judge("size"), judge("latency", max_size="60%"), judge("size", max_latency="80%")]
)


@settings(max_examples=100, deadline=None)
@given(trials, goals, st.randoms())
def test_the_best_does_not_depend_on_the_order(found: list, judging: Judge, random: object) -> None:
    best = judging.best(found)
    shuffled = random.sample(found, len(found))  # type: ignore[attr-defined]
    assert judging.best(shuffled) is best
    if best is not None:
        tie = 1.03 if judging.goal.minimize == "latency" else 1.01
        assert judging.cost(best) <= min(map(judging.cost, found)) * tie


# ------------------------------------------------------------------------------------------------------------ the front


def test_the_front_goes_from_safe_to_cheap() -> None:
    safe = made(A, speedup=1.5, drop=0.0, bound=0.004, low=-0.002)
    doubtful = made(B, speedup=2.5, drop=0.01, bound=0.019, low=0.004)
    hopeful = made(C, speedup=4.0, drop=0.02, bound=0.03, low=0.014)  # does not pass on search
    assert judge().front([hopeful, doubtful, safe]) == [safe, doubtful, hopeful]


def test_what_is_as_safe_and_cheaper_needs_nothing_in_front_of_it() -> None:
    slow, middle, fast = (made(step, speedup=1.1 + i) for i, step in enumerate((A, B, C)))
    assert judge().front([slow, middle, fast]) == [fast]


def test_a_step_that_gains_little_is_not_stumbled_over() -> None:
    safe = made(A, speedup=1.5, drop=0.0, bound=0.001, low=-0.001)
    between = made(B, speedup=1.6, drop=0.01, bound=0.019, low=0.004)
    cheap = made(C, speedup=4.0, drop=0.01, bound=0.018, low=0.004)
    assert judge().front([between, cheap, safe]) == [safe, cheap]


def test_the_hopeless_are_shown_where_there_is_nothing_else() -> None:
    hopeless = made(A, speedup=1.5, drop=0.5, bound=0.6)
    assert judge().front([hopeless]) == [hopeless]
    assert judge().front([]) == []


@settings(max_examples=100, deadline=None)
@given(trials, goals)
def test_what_a_front_is(found: list, judging: Judge) -> None:
    front, able = judging.front(found), [t for t in found if judging.eligible(t)]
    assert len(front) <= FRONT
    assert all(map(judging.eligible, front))
    costs = [judging.cost(t) for t in front]
    assert costs == sorted(set(costs), reverse=True)
    assert bool(front) == bool(able)
    if able and len(front) < FRONT:  # whoever is cheaper still may be asked behind the others: it costs nothing
        assert costs[-1] == min(map(judging.cost, able))


def test_a_goal_without_limits_lets_anything_within() -> None:
    assert Judge(Goal(), 0.01, original()).within_limits(made(A, speedup=0.01, size=50.0))
