"""The outer optimizer: its formulas, what it conserves, what it refuses, and its checkpoints."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dpwa.errors import ConfigError
from dpwa.methods import outer
from dpwa.methods.outer import OuterOptimizer

SIZES = (7, 1, 300)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks even for small arrays, the last one shorter."""
    monkeypatch.setattr(outer, "_BLOCK", 64)


def vectors(random, dtype=np.float64, sizes=SIZES):
    return [random.normal(size=size).astype(dtype) for size in sizes]


def like(thetas):
    return [np.full(theta.size, np.nan, np.float64 if theta.dtype == np.float64 else np.float32) for theta in thetas]


def bfloat16(values):
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


class PlainDiloco:
    """The formulas as they are written in the paper, for one array."""

    def __init__(self, theta, lr, mu, nesterov):
        self.phi, self.m = theta.copy(), np.zeros_like(theta)
        self.lr, self.mu, self.nesterov = lr, mu, nesterov

    def step(self, theta):
        gradient = self.phi - theta
        self.m = self.mu * self.m + gradient
        self.phi = self.phi - self.lr * (gradient + self.mu * self.m if self.nesterov else self.m)
        return self.phi - theta


class PlainNoloco:
    """The formulas as they are written in the paper, for one array and two nodes."""

    def __init__(self, thetas, beta, mu, gamma):
        self.phis, self.ms = [theta.copy() for theta in thetas], [np.zeros_like(theta) for theta in thetas]
        self.beta, self.mu, self.gamma = beta, mu, gamma

    def step(self, thetas):
        ways = [theta - phi for theta, phi in zip(thetas, self.phis, strict=True)]
        mean_way, mean_phi = sum(ways) / 2, sum(self.phis) / 2
        self.ms = [
            self.mu * m + self.beta * mean_way - self.gamma * (phi - mean_phi)
            for m, phi in zip(self.ms, self.phis, strict=True)
        ]
        self.phis = [phi + m for phi, m in zip(self.phis, self.ms, strict=True)]
        return [phi - theta for phi, theta in zip(self.phis, thetas, strict=True)]


# ---- Alone -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("lr", "mu"), [(0.7, 0.9), (1.0, 0.5), (0.3, 0.0), (1.7, 0.2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_a_step_is_that_of_the_paper(lr, mu, nesterov, dtype, tolerance):
    random = np.random.default_rng(0)
    thetas = vectors(random, dtype)
    optimizer = OuterOptimizer(thetas, learning_rate=lr, momentum=mu, nesterov=nesterov)
    plain = [PlainDiloco(theta.astype(np.float64), lr, mu, nesterov) for theta in thetas]
    for _ in range(6):
        out = like(thetas)
        assert optimizer.step(thetas, out)
        for index, theta in enumerate(thetas):
            expected = plain[index].step(theta.astype(np.float64))
            np.testing.assert_allclose(out[index], expected, rtol=0, atol=tolerance)
            np.testing.assert_allclose(optimizer.anchors[index], plain[index].phi, rtol=0, atol=tolerance)
        thetas = [
            (theta + way + 0.1 * random.normal(size=theta.size)).astype(dtype)
            for theta, way in zip(thetas, out, strict=True)
        ]
    assert optimizer.steps == 6


finite32 = st.floats(-(2.0**100), 2.0**100, width=32)


@given(
    start=arrays(np.float32, 5, elements=finite32),
    theta=arrays(np.float32, 5, elements=finite32),
    nesterov=st.booleans(),
)
def test_learning_rate_one_without_momentum_changes_nothing_exactly(start, theta, nesterov):
    optimizer = OuterOptimizer([start], learning_rate=1.0, momentum=0.0, nesterov=nesterov)
    out = like([start])
    for _ in range(2):
        assert optimizer.step([theta], out)
        assert not out[0].any()
        assert np.array_equal(optimizer.anchors[0], theta)


def test_steady_progress_is_amplified_by_lr_over_one_minus_mu():
    """With D the same in each round, m tends to D / (1 - mu), and a round's move to lr times that in both forms."""
    for nesterov in (True, False):
        optimizer = OuterOptimizer([np.zeros(3)], learning_rate=0.5, momentum=0.8, nesterov=nesterov)
        theta, out = np.zeros(3), like([np.zeros(3)])
        for _ in range(200):
            before = theta.copy()
            theta = theta + 1.0
            assert optimizer.step([theta], out)
            theta = theta + out[0]
        np.testing.assert_allclose(theta - before, 0.5 / (1 - 0.8), rtol=1e-9)


def test_steps_made_meanwhile_are_kept():
    """The increment is against the theta handed over: a model that has gone on keeps what it did."""
    optimizer = OuterOptimizer([np.zeros(4)], learning_rate=0.7, momentum=0.9)
    theta, out = np.ones(4), like([np.zeros(4)])
    later = theta + 0.25
    assert optimizer.step([theta], out)
    np.testing.assert_allclose(later + out[0], optimizer.anchors[0] + 0.25)


def test_the_increments_may_take_the_place_of_the_values():
    random = np.random.default_rng(1)
    start, theta = vectors(random), vectors(random)
    one, other = OuterOptimizer(start), OuterOptimizer(start)
    out = like(theta)
    assert one.step(theta, out)
    assert other.step(theta, theta)
    for index in range(len(SIZES)):
        assert np.array_equal(out[index], theta[index])
        assert np.array_equal(one.anchors[index], other.anchors[index])


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_worked_on_in_float32(half):
    random = np.random.default_rng(2)
    start, theta = random.normal(size=(2, 200)).astype(np.float32)
    packed = [bfloat16(each) if half == "bfloat16" else each.astype(np.float16) for each in (start, theta)]
    widened = [
        (each.astype(np.uint32) << 16).view(np.float32) if half == "bfloat16" else each.astype(np.float32)
        for each in packed
    ]
    small, large = OuterOptimizer([packed[0]]), OuterOptimizer([widened[0]])
    out, expected = like([theta]), like([theta])
    assert small.step([packed[1]], out)
    assert large.step([widened[1]], expected)
    assert out[0].dtype == small.anchors[0].dtype == np.float32
    assert np.array_equal(out[0], expected[0])


# ---- A pair ----------------------------------------------------------------------------------------------------------


def pair_step(optimizers, thetas):
    """Both sides step with each other's present values; returns the increments."""
    anchors = [[anchor.copy() for anchor in optimizer.anchors] for optimizer in optimizers]
    outs = []
    for own, peer in ((0, 1), (1, 0)):
        theta_difference = [theirs - mine for theirs, mine in zip(thetas[peer], thetas[own], strict=True)]
        anchor_difference = [theirs - mine for theirs, mine in zip(anchors[peer], anchors[own], strict=True)]
        outs.append(like(thetas[own]))
        assert optimizers[own].pair_step(thetas[own], theta_difference, anchor_difference, outs[-1])
    return outs


@pytest.mark.parametrize(("beta", "mu", "gamma"), [(0.7, 0.5, 0.7), (1.0, 0.0, 1.0), (0.4, 0.9, 0.0), (0.7, 0.5, 2.5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_a_pairs_step_is_that_of_the_paper(beta, mu, gamma, dtype, tolerance):
    random = np.random.default_rng(3)
    thetas = [vectors(random, dtype), vectors(random, dtype)]
    options = {"learning_rate": beta, "momentum": mu, "anchor_pull": gamma}
    optimizers = [OuterOptimizer(theta, **options) for theta in thetas]
    plain = [
        PlainNoloco([one.astype(np.float64), other.astype(np.float64)], beta, mu, gamma)
        for one, other in zip(*thetas, strict=True)
    ]
    for _ in range(5):
        outs = pair_step(optimizers, thetas)
        for index in range(len(SIZES)):
            expected = plain[index].step([thetas[0][index].astype(np.float64), thetas[1][index].astype(np.float64)])
            for node in range(2):
                np.testing.assert_allclose(outs[node][index], expected[node], rtol=0, atol=tolerance)
                anchor = optimizers[node].anchors[index]
                np.testing.assert_allclose(anchor, plain[index].phis[node], rtol=0, atol=tolerance)
        thetas = [
            [
                (theta + way + 0.1 * random.normal(size=theta.size)).astype(dtype)
                for theta, way in zip(thetas[node], outs[node], strict=True)
            ]
            for node in range(2)
        ]


any_vector = arrays(np.float64, 4, elements=st.floats(-1e3, 1e3))


@given(
    starts=st.tuples(any_vector, any_vector),
    rounds=st.lists(st.tuples(any_vector, any_vector), min_size=1, max_size=6),
    beta=st.floats(0.01, 2),
    mu=st.floats(0, 0.99),
    pull=st.floats(0, 1),
)
def test_a_pair_moves_its_mean_as_one_node_would(starts, rounds, beta, mu, pull):
    """Closed form: mean m <- mu mean m + beta mean D and mean phi <- mean phi + mean m, whatever gamma is."""
    options = {"learning_rate": beta, "momentum": mu, "anchor_pull": pull * 1.99}
    optimizers = [OuterOptimizer([start], **options) for start in starts]
    mean_phi, mean_m = (starts[0] + starts[1]) / 2, np.zeros(4)
    for thetas in rounds:
        pair_step(optimizers, [[theta] for theta in thetas])
        mean_m = mu * mean_m + beta * ((thetas[0] + thetas[1]) / 2 - mean_phi)
        mean_phi = mean_phi + mean_m
        anchors = [optimizer.anchors[0] for optimizer in optimizers]
        scale = 1e3 + np.abs(anchors).max()
        np.testing.assert_allclose((anchors[0] + anchors[1]) / 2, mean_phi, rtol=0, atol=1e-9 * scale)


def test_two_nodes_that_do_not_train_come_to_agree_at_their_mean():
    random = np.random.default_rng(4)
    starts = [vectors(random), vectors(random)]
    optimizers = [OuterOptimizer(start, learning_rate=0.7, momentum=0.5, anchor_pull=0.7) for start in starts]
    thetas = starts
    for _ in range(100):
        outs = pair_step(optimizers, thetas)
        thetas = [[theta + way for theta, way in zip(thetas[node], outs[node], strict=True)] for node in range(2)]
    for index in range(len(SIZES)):
        for node in range(2):
            np.testing.assert_allclose(thetas[node][index], (starts[0][index] + starts[1][index]) / 2, atol=1e-9)


@pytest.mark.parametrize("place", [1, 2])
def test_a_pairs_increments_may_take_the_place_of_the_differences(place):
    random = np.random.default_rng(5)
    start, *given_arrays = (vectors(random) for _ in range(4))
    one, other = OuterOptimizer(start), OuterOptimizer(start)
    out = like(start)
    assert one.pair_step(*given_arrays, out)
    assert other.pair_step(*given_arrays, given_arrays[place])
    for index in range(len(SIZES)):
        assert np.array_equal(out[index], given_arrays[place][index])


# ---- What is refused -------------------------------------------------------------------------------------------------


def state_of(optimizer):
    return {key: value.tobytes() for key, value in optimizer.state_dict().items()}


def trained():
    random = np.random.default_rng(6)
    optimizer = OuterOptimizer(vectors(random, np.float32))
    assert optimizer.step(vectors(random, np.float32), like(vectors(random, np.float32)))
    return optimizer


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -3e38])
@pytest.mark.parametrize("index", range(len(SIZES)))
def test_a_model_that_is_not_finite_changes_nothing(bad, index):
    optimizer = trained()
    before = state_of(optimizer)
    theta = vectors(np.random.default_rng(8), np.float32)
    theta[index][-1] = bad
    out = like(theta)
    assert not optimizer.step(theta, out)
    assert not optimizer.restart(theta)
    assert state_of(optimizer) == before
    assert all(np.isnan(each).all() for each in out), "nothing was written"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -3e38])
@pytest.mark.parametrize("which", range(3))
def test_a_peers_values_that_are_not_finite_change_nothing(bad, which):
    optimizer = trained()
    before = state_of(optimizer)
    random = np.random.default_rng(9)
    given_arrays = [vectors(random, np.float32) for _ in range(3)]
    given_arrays[which][2][150] = bad
    out = like(given_arrays[0])
    assert not optimizer.pair_step(*given_arrays, out)
    assert state_of(optimizer) == before
    assert all(np.isnan(each).all() for each in out), "nothing was written"


@given(
    rounds=st.lists(arrays(np.float32, 3, elements=st.floats(width=32)), max_size=8),
    rate=st.floats(0.1, 100),
    momentum=st.floats(0, 0.99),
    nesterov=st.booleans(),
    pair=st.booleans(),
)
def test_the_state_is_finite_whatever_comes(rounds, rate, momentum, nesterov, pair):
    optimizer = OuterOptimizer([np.ones(3, np.float32)], learning_rate=rate, momentum=momentum, nesterov=nesterov)
    accepted = 0
    for theta in rounds:
        out = like([theta])
        taken = optimizer.pair_step([theta], [theta], [theta], out) if pair else optimizer.step([theta], out)
        accepted += taken
        assert np.isfinite(out[0]).all() == taken
        assert all(np.isfinite(value).all() for value in optimizer.state_dict().values())
    assert optimizer.steps == accepted


def test_arrays_that_do_not_fit_are_named_with_what_was_expected():
    optimizer = OuterOptimizer([np.zeros(3, np.float32), np.zeros(2)])
    right = [np.zeros(3, np.float32), np.zeros(2)]
    message = r"theta: expected arrays of float32\[3\], float64\[2\], got float32\[2\]"
    with pytest.raises(ConfigError, match=message):
        optimizer.step([np.zeros(2, np.float32)], right)
    with pytest.raises(ConfigError, match="an outer step's out"):
        optimizer.step(right, [np.zeros(3), np.zeros(2)])
    with pytest.raises(ConfigError, match="an outer step's anchor_difference"):
        optimizer.pair_step(right, right, [], right)
    with pytest.raises(ConfigError, match="an outer step's theta"):
        optimizer.restart([])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"learning_rate": 0}, "learning_rate: expected a finite number above 0, got 0"),
        ({"momentum": 1}, "momentum: expected a finite number of at least 0 and below 1, got 1"),
        ({"momentum": 0.5, "anchor_pull": 3}, "anchor_pull: expected a finite number of at least 0 and below 3, got 3"),
        ({"anchor_pull": -0.1}, "anchor_pull: expected a finite number of at least 0"),
    ],
)
def test_options_out_of_their_limits_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        OuterOptimizer([np.zeros(2)], **options)


@pytest.mark.parametrize("theta", [np.zeros((2, 2)), np.zeros(2, np.int32), np.array([1.0, math.nan])])
def test_a_theta_that_cannot_be_used_is_refused(theta):
    with pytest.raises(ConfigError, match="theta"):
        OuterOptimizer([theta])


def test_nothing_to_optimize_is_no_error():
    optimizer = OuterOptimizer([])
    assert optimizer.step([], [])
    assert OuterOptimizer([np.zeros(0)]).step([np.zeros(0)], [np.zeros(0)])


# ---- Life ------------------------------------------------------------------------------------------------------------


def test_a_restart_forgets_the_momentum_and_begins_at_the_new_model():
    random = np.random.default_rng(10)
    optimizer, theta, later = trained(), vectors(random, np.float32), vectors(random, np.float32)
    assert optimizer.restart(theta)
    out, expected = like(theta), like(theta)
    assert optimizer.step(later, out)
    assert OuterOptimizer(theta).step(later, expected)
    for index in range(len(SIZES)):
        assert np.array_equal(out[index], expected[index])


def test_the_anchors_are_copies_that_cannot_be_written_to():
    theta = np.zeros(3)
    optimizer = OuterOptimizer([theta])
    theta += 1
    assert not optimizer.anchors[0].any()
    with pytest.raises(ValueError, match="read-only"):
        optimizer.anchors[0][0] = 1.0


def test_a_checkpoint_goes_on_exactly_where_it_was():
    random = np.random.default_rng(11)
    optimizer, other = trained(), OuterOptimizer(vectors(random, np.float32))
    state = optimizer.state_dict()
    for _ in range(2):
        theta = vectors(random, np.float32)
        assert optimizer.step(theta, like(theta))
    other.load_state_dict(state)
    assert other.steps == 1
    assert state_of(other) == {key: value.tobytes() for key, value in state.items()}
    theta = vectors(random, np.float32)
    resumed = trained()
    first, second = like(theta), like(theta)
    assert other.step(theta, first)
    assert resumed.step(theta, second)
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))


def test_a_checkpoint_that_does_not_fit_is_refused_with_every_problem():
    optimizer = trained()
    before = state_of(optimizer)
    state = optimizer.state_dict()
    state["anchor.0"] = state["anchor.0"].astype(np.float64)
    state["momentum.1"][0] = math.nan
    state["steps"] = np.array(-1)
    state["anchor.3"] = np.zeros(1)
    del state["momentum.2"]
    with pytest.raises(ConfigError) as caught:
        optimizer.load_state_dict(state)
    found = [problem.removeprefix("loading the state of an outer optimizer: ") for problem in caught.value.problems]
    assert sorted(problem.split(":")[0] for problem in found) == [
        "anchor.0",
        "anchor.3",
        "momentum.1",
        "momentum.2",
        "steps",
    ]
    assert state_of(optimizer) == before
