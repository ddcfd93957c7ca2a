"""The certificate of a whole simulated search: both gates, and broken certificates that must not pass them.

The simulation is the benchmark's own; here the p-values are shared by all tests of the process.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import certificate


def test_the_gate_is_the_quantile_stated():
    assert certificate.WRONG_ALLOWED == 123
    assert stats.binom.sf(123, 2000, 0.05) < 0.01 < stats.binom.sf(122, 2000, 0.05)


@pytest.mark.parametrize("records", ["labelled", "agreement"])
def test_the_certificate_passes_both_gates(records):
    gates = certificate.simulate(certificate.sound, certificate.WORLDS[records])
    assert gates.wrong <= 123
    assert gates.wrong > 50  # 5 % of 2,000 is 100: the error allowed is used
    assert gates.power >= 0.9
    assert gates.passes


@pytest.mark.parametrize("records", ["labelled", "agreement"])
@pytest.mark.parametrize("broken", [certificate.best_on_holdout, certificate.point_estimate])
def test_a_certificate_that_errs_too_often_fails(broken, records):
    gates = certificate.simulate(broken, certificate.WORLDS[records])
    assert gates.wrong > 123
    assert not gates.passes


def test_a_certificate_that_ignores_the_pairing_fails_for_want_of_power():
    gates = certificate.simulate(certificate.unpaired_wald, certificate.labelled)
    assert gates.power < 0.9
    assert not gates.passes


def test_worlds_have_the_drop_they_state():
    rng = np.random.default_rng(0)
    for world, accuracy in ((certificate.labelled(0.01), 0.9), (certificate.agreement(0.01), 1.0)):
        lost, won, right, wrong = world.draw(rng, 2000, 5000).reshape(-1, 4).mean(axis=0) / 5000
        assert lost - won == pytest.approx(0.01, rel=0.01)
        assert lost + right == pytest.approx(accuracy, abs=0.001)
        assert lost + won + right + wrong == pytest.approx(1)


def test_the_run_record_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(certificate, "search_rows", lambda: [{"table": "search"}])
    for table in ("size_rows", "power_rows", "reach_rows", "time_rows"):
        monkeypatch.setattr(certificate, table, list)
    record = certificate.main(tmp_path / "records")
    assert json.loads((tmp_path / "records" / "certificate.json").read_text()) == record
    assert record["benchmark"] == "certificate"
    assert record["rows"] == [{"table": "search"}]
