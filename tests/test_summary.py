"""Statistics of a stay from the ragged batch, and stays that end at an hour: plain twins, and no look at the future."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from hsetvae.baselines import STATISTICS as PLAIN
from hsetvae.baselines import summary_features
from hsetvae.cohort import joined
from hsetvae.config import IMPROVED, RECOMMENDED, UserError
from hsetvae.data import Standardiser, collate, split, with_shorter
from hsetvae.evaluate import evaluate, predict
from hsetvae.model import HSetVAE, initialise
from hsetvae.simulate import simulate
from hsetvae.summary import STATISTICS, Summary, summarise
from hsetvae.train import train

SMALL = dict(width=16, latent=6, feedforward=16)


@pytest.fixture(scope="module")
def cohort():
    """Thirty ragged stays, and five more cut to their first set: one set, and most variables absent."""
    stays = simulate(35, seed=2).cohort
    return joined([stays.subset(np.arange(30)), stays.subset(np.arange(30, 35)).until(0.0)])


@pytest.fixture(scope="module")
def standardiser(cohort):
    return Standardiser.fit(cohort, np.arange(20))


def double(batch):
    windows = dataclasses.replace(batch.windows, value=batch.windows.value.double())
    return dataclasses.replace(batch, hours=batch.hours.double(), windows=windows)


def build(config, cohort, standardiser, seed=0):
    model = HSetVAE(config, len(cohort.variables))
    initialise(model, config, seed)
    if config.statistics:
        model.head.summary.fit([collate(cohort, np.arange(20), standardiser, 256)])
    return model.double().eval()


def test_the_statistics_are_those_of_the_baselines(cohort, standardiser):
    index, V = np.array([3, 34, 11, 30, 0]), len(cohort.variables)
    z = standardiser.transform(cohort).astype(float)
    plain = summary_features(dataclasses.replace(cohort, value=z), index)[0].reshape(len(index), -1, V)
    found = summarise(double(collate(cohort, index, standardiser, 256)), V).numpy()
    for place, name in enumerate(STATISTICS):
        expected = np.log1p(plain[:, PLAIN.index("count")]) if name == "log count" else plain[:, PLAIN.index(name)]
        np.testing.assert_allclose(found[:, place], expected, rtol=0, atol=1e-6, err_msg=name)
    assert np.isnan(found[1, 0]).any(), "a stay of one set lacks variables"


def test_the_head_sees_statistics_in_sd_over_the_training_stays_and_zero_where_there_are_none(cohort, standardiser):
    V = len(cohort.variables)
    summary = Summary(RECOMMENDED, V).double().eval()
    batch = double(collate(cohort, np.arange(30), standardiser, 256))
    summary.fit([double(collate(cohort, part, standardiser, 256)) for part in (np.arange(11), np.arange(11, 30))])
    raw, seen = summarise(batch, V).numpy(), summary(batch).view(30, -1, V).numpy()
    with warnings.catch_warnings(action="ignore"):  # what no stay has is NaN in the plain form too
        expected, usual = (raw - np.nanmean(raw, 0)) / np.nanstd(raw, 0), np.nanstd(raw, 0) > 1e-3
    np.testing.assert_allclose(
        seen[:, : len(STATISTICS)][:, usual], np.nan_to_num(expected.clip(-4, 4))[:, usual], rtol=0, atol=1e-9
    )
    assert np.isin(seen[:, len(STATISTICS) :], (0, 1)).all()
    assert (seen[:, len(STATISTICS)] == ~np.isnan(raw[:, STATISTICS.index("mean")])).all()


def test_a_variable_that_training_never_saw_says_that_it_is_there_and_no_more(cohort, standardiser):
    summary = Summary(RECOMMENDED, len(cohort.variables) + 1).eval()
    summary.fit([collate(cohort, np.arange(20), standardiser, 256)])
    assert (summary.centre[:, -1] == 0).all() and (summary.spread[:, -1] == 1).all()
    assert torch.isfinite(summary(collate(cohort, np.arange(35), standardiser, 256))).all()


def test_statistics_change_the_outcome_head_and_nothing_else(cohort, standardiser):
    off, on = (build(RECOMMENDED.but(**SMALL, statistics=s, head="mlp"), cohort, standardiser) for s in (False, True))
    assert not [name for name in off.state_dict() if "summary" in name]
    first, plain = on.head.net[0], off.head.net[0]
    with torch.no_grad():
        first.weight[:, : SMALL["width"]], first.bias[:] = plain.weight, plain.bias
        batch = double(collate(cohort, np.arange(8), standardiser, 256))
        assert not torch.equal(on(batch, sample=False).logits, off(batch, sample=False).logits)
        first.weight[:, SMALL["width"] :] = 0
        a, b = on(batch, sample=False), off(batch, sample=False)
    torch.testing.assert_close(a.logits, b.logits, rtol=0, atol=1e-12)
    assert torch.equal(a.h, b.h) and torch.equal(a.kl, b.kl)


# --- a stay as it was known at an hour ------------------------------------------------------------------------------


def test_a_cut_stay_holds_its_sets_until_then_and_never_none(cohort):
    cut = cohort.until(12.0)
    assert len(cut) == len(cohort) and cut.stays is cohort.stays
    for i in range(len(cohort)):
        before, after = cohort.subset([i]), cut.subset([i])
        n = max(1, int((before.hours <= 12).sum()))
        assert after.hours.tolist() == before.hours[:n].tolist()
        events = before.first_event[n]
        assert after.variable.tolist() == before.variable[:events].tolist()
        assert after.value.tolist() == before.value[:events].tolist()
    assert cohort.until(np.inf).key() == cohort.key()
    early = cohort.until(0.0)
    assert (np.diff(early.first_set) == 1).all() and early.hours.tolist() == cohort.hours[
        cohort.first_set[:-1]
    ].tolist()
    each = np.where(np.arange(len(cohort)) % 2, np.inf, 0.0)
    assert (np.diff(cohort.until(each).first_set)[1::2] == np.diff(cohort.first_set)[1::2]).all()


def test_what_follows_the_cut_changes_no_prediction(cohort, standardiser):
    model = build(RECOMMENDED.but(**SMALL), cohort, standardiser)
    late = np.repeat(cohort.hours > 12, np.diff(cohort.first_event))
    other = dataclasses.replace(cohort, value=np.where(late, cohort.value + 7, cohort.value))
    index, V = np.arange(30), len(cohort.variables)

    def seen(c):
        batch = double(collate(c, index, standardiser, 256))
        return torch.cat([model(batch, sample=False).logits, summarise(batch, V).nan_to_num(0).flatten()])

    assert not torch.equal(seen(cohort), seen(other)), "without the cut the future counts"
    assert torch.equal(seen(cohort.until(12)), seen(other.until(12)))


def test_a_share_of_the_training_stays_comes_again_up_to_an_hour_between_its_first_and_its_last():
    many = simulate(300, seed=6).cohort
    a, b, other = (with_shorter(many, 0.3, seed) for seed in (1, 1, 2))
    assert a.key() == b.key() != other.key()
    assert a.subset(np.arange(300)).key() == many.key(), "every whole stay is still there"
    again = a.subset(np.arange(300, len(a)))
    sets = dict(zip(many.stays, np.diff(many.first_set), strict=True))
    kept = np.diff(again.first_set) / [sets[stay] for stay in again.stays]
    assert 60 < len(again) < 120 and 0.3 < kept.mean() < 0.7 and kept.min() > 0
    assert with_shorter(many, 0.0, 1).key() == many.key()


def test_without_a_cut_training_is_what_it_was_and_with_one_it_is_another_and_repeats(tmp_path):
    cohort = simulate(40, seed=1).cohort
    parts, tiny = split(cohort, 0), IMPROVED.but(**SMALL, epochs=1, pretrain_epochs=0)

    def last(name, config):
        return train(config, cohort, parts, tmp_path / name, progress=False).model.state_dict()["head.net.0.weight"]

    plain, none, some, again = (last(f"{i}", tiny.but(cut=c)) for i, c in enumerate((0.0, 0.0, 0.5, 0.5)))
    assert torch.equal(plain, none) and torch.equal(some, again) and not torch.equal(plain, some)


def test_the_recommended_preset_learns_and_predicts_at_any_hour(recommended_run):
    run, cohort, parts = recommended_run
    assert evaluate(run, cohort, parts.test)["auroc"] > 0.65
    now, then = predict(run, cohort, parts.test), predict(run, cohort.until(24), parts.test)
    assert len(then) == len(now) and not np.allclose(then, now)
    with pytest.raises(UserError, match="no stay to score"):
        predict(run, cohort.subset(np.array([], dtype=int)).until(24))
