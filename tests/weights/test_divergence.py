from __future__ import annotations

import numpy as np
import pytest

from amigo_local.weights.divergence import change_share, divergence
from amigo_local.weights.kernels import Rows


def logits(*values: object) -> Rows:
    return np.array(values, np.float32)


def test_divergence_is_kullback_leiblers() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    found = divergence(np.log(p).astype(np.float32), np.log(q).astype(np.float32) + 3)
    assert found.mean == pytest.approx(0.25 * np.log(2), abs=1e-6)
    assert (found.same_top, found.positions) == (0.0, 1)


def test_no_positions_and_broken_logits_are_no_agreement() -> None:
    assert not divergence(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)).mean <= 1
    assert not divergence(logits([1, 2, 3]), logits([1, np.nan, 3])).mean <= 1


def test_a_wider_vocabulary_is_cut() -> None:
    assert divergence(logits([1, 2, 3, 9]), logits([1, 2, 3])).mean == pytest.approx(0, abs=1e-12)


def test_the_share_of_a_change_shows_through_noise_far_above_it() -> None:
    random = np.random.default_rng(0)
    before = random.normal(0, 2, (300, 2000)).astype(np.float32)
    change = random.normal(0, 0.02, before.shape).astype(np.float32)
    plain = before + random.normal(0, 0.1, before.shape).astype(np.float32)
    noise = random.normal(0, 0.1, before.shape).astype(np.float32)
    for there in (1.0, 0.3, 0.0):
        found = change_share(before, before + change, plain, plain + there * change + noise + 7)
        assert found.error < 0.05
        assert abs(found.share - there) < 3 * found.error
        # Divergences are the noise's: 0.005 nats, the change's 0.0002.
        noisy = divergence(before + change, plain + there * change + noise).mean
        assert noisy > 20 * divergence(before, before + change).mean


def test_no_change_has_no_share() -> None:
    same = logits([1, 2, 3])
    assert change_share(same, same, same, logits([3, 2, 1])).figures("share") == {"share": None, "share_error": None}
