"""Tasks of vectors: what they draw is what they say, and the stream is the same for any number of processes."""

from __future__ import annotations

import itertools

import pytest
import torch

from mesalm.data.synthetic.context_regression import ContextRegression
from mesalm.data.synthetic.drawn_stream import DrawnStream, StepPosition, drawn_batch, step_generator
from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.data.synthetic.nonlinear_dynamics import NonlinearDynamics
from mesalm.data.synthetic.vector_task import VectorTask, orthogonal
from mesalm.settings import SettingsError

TASKS = [
    LinearDynamics(size=3, length=6),
    LinearDynamics(size=2, hidden=5, length=6),
    LinearDynamics(size=3, length=6, transition="contracting"),
    LinearDynamics(size=3, length=6, transition="teacher"),
    NonlinearDynamics(size=3, length=6),
    ContextRegression(size=3, outputs=1, pairs=4),
    ContextRegression(size=3, pairs=4, second_pairs=2, map="orthogonal", inputs="uniform", separator=True, prefix=5),
]
NAMES = ["full", "partial", "contracting", "teacher", "nonlinear", "regression", "two-tasks"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(task: VectorTask, count: int, **options: int) -> list[dict[str, torch.Tensor]]:
    """Return the batches of a process in `count` steps, the micro-batches of each put together."""
    stream = DrawnStream(task, StepPosition(7), 8, **options)
    batches = list(itertools.islice(stream, count * stream.micro_batches))
    parts = [batches[at : at + stream.micro_batches] for at in range(0, len(batches), stream.micro_batches)]
    return [{name: torch.cat([part[name] for part in step]) for name in step[0]} for step in parts]


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_a_batch_has_the_sizes_its_task_states(task: VectorTask) -> None:
    batch = task.draw(5, generator())
    shape = (5, task.sequence_length, task.input_size)
    assert batch["inputs"].shape == batch["targets"].shape == shape
    assert all(value.shape[:2] == shape[:2] for value in batch.values())
    assert all(value.isfinite().all() for value in batch.values())
    assert ("places" in batch) == (task.learned_vectors > 0)
    if task.learned_vectors:
        assert batch["places"].unique().tolist() == list(range(task.learned_vectors + 1))


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_steps_do_not_depend_on_the_rows_of_a_micro_batch(task: VectorTask) -> None:
    alone = steps(task, 3)
    for micro_rows in (1, 2, 4):
        for parts, whole in zip(steps(task, 3, micro_rows=micro_rows), alone, strict=True):
            for name, tensor in whole.items():
                assert torch.equal(parts[name], tensor)
    assert not torch.equal(alone[0]["inputs"], alone[1]["inputs"])


def test_a_stream_goes_on_from_a_saved_position() -> None:
    stream = DrawnStream(TASKS[0], StepPosition(7), 8, micro_rows=2)
    batches = iter(stream)
    for _ in range(10):  # into the middle of the third step, which begins again
        next(batches)
    assert stream.position == StepPosition(7, 2)
    again = DrawnStream(TASKS[0], StepPosition.from_dict(stream.position.to_dict()), 8)
    assert torch.equal(next(iter(again))["inputs"], steps(TASKS[0], 3)[2]["inputs"])


def test_seeds_splits_and_steps_draw_other_sequences() -> None:
    firsts = {
        step_generator(seed, step, split).initial_seed()
        for seed in (0, 1)
        for step in range(200)
        for split in ("train", "valid", "test")
    }
    assert len(firsts) == 1200


def test_a_stream_refuses_rows_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple"):
        DrawnStream(TASKS[0], StepPosition(0), 8, micro_rows=3)
    with pytest.raises(ValueError, match="seed and step"):
        StepPosition.from_dict({"seed": 1, "epoch": 0, "row": 3})


def test_orthogonal_matrices_follow_the_haar_measure() -> None:
    matrices = orthogonal(20_000, 4, generator())
    product = matrices @ matrices.mT
    torch.testing.assert_close(product, torch.eye(4).expand_as(product), atol=2e-6, rtol=0)
    # E tr = 0 and E tr^2 = 1 on O(n) (Diaconis and Shahshahani 1994); the Q of a QR alone has E tr far below 0.
    # 5 standard errors of a mean over 20,000: sd(tr) = 1, sd(tr^2) = sqrt(2)
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(trace.mean()) < 5 * 20_000**-0.5
    assert abs(trace.square().mean() - 1) < 5 * (2 / 20_000) ** 0.5


@pytest.mark.parametrize("task", TASKS[:4], ids=NAMES[:4])
def test_linear_states_follow_their_map(task: LinearDynamics) -> None:
    states, seen, transition, readout = task.trajectories(400, generator())
    noise = states[:, 1:] - states[:, :-1] @ transition.mT
    if task.transition == "contracting":
        # maps of large norm drive states to their bound, and carry more rounding than the noise is
        tame = (states.abs().amax((1, 2)) < 2) & (torch.linalg.matrix_norm(transition, 2) < 100)
        assert tame.float().mean() > 0.8
        noise = noise[tame]
    assert noise.std() == pytest.approx(0.01, rel=0.05)
    assert states[:, 0].abs().max() <= 1
    assert states[:, 0].var() == pytest.approx(1 / 3, rel=0.1)
    if readout is None:
        assert torch.equal(seen, states)
    else:
        assert (seen - states @ readout.mT).std() == pytest.approx(0.01, rel=0.05)
        assert readout.std() == pytest.approx(0.5, rel=0.05)
    batch = task.draw(400, generator())
    assert torch.equal(batch["inputs"], seen[:, :-1])
    assert torch.equal(batch["targets"], seen[:, 1:])


def test_contracting_maps_have_the_stated_eigenvalues() -> None:
    task = LinearDynamics(size=4, transition="contracting")
    values = torch.linalg.eigvals(task.trajectories(300, generator()).transition.double())
    # the maps are made in float32 from a basis whose condition may be large
    assert values.imag.abs().max() < 1e-2
    ordered = values.real.sort(dim=-1).values
    assert ordered[:, -1].median() == pytest.approx(0.9, abs=1e-5)
    assert ordered[:, :-1].quantile(0.01) > 0.29
    assert ordered[:, :-1].mean() == pytest.approx(0.6, abs=0.03)


def test_a_teacher_is_one_map_and_others_are_many() -> None:
    first, second = (TASKS[3].trajectories(2, generator(seed)).transition for seed in (0, 1))
    assert torch.equal(first[0], second[1])
    other = LinearDynamics(size=3, transition="teacher", teacher_seed=1).trajectories(1, generator()).transition
    assert not torch.equal(other[0], first[0])
    fresh = TASKS[0].trajectories(2, generator()).transition
    assert not torch.equal(fresh[0], fresh[1])


def test_predicting_zero_costs_what_the_start_and_the_noise_say() -> None:
    batch = drawn_batch(LinearDynamics(), 4_000, seed=0)
    cost = 0.5 * batch["targets"].square().sum(-1).mean(0)
    # E |s_t|^2 = 10 / 3 + 10 sigma^2 t: orthogonal maps keep the length, the noise adds to it. |s|^2 has a standard
    # deviation of sqrt(10 * 4 / 45), so 5 standard errors of half its mean over 4,000 are 0.037
    expected = 0.5 * 10 * (1 / 3 + 1e-4 * torch.arange(1, 51))
    assert (cost - expected).abs().max() < 0.037


def test_nonlinear_states_follow_unit_features() -> None:
    task = NonlinearDynamics(size=5, width=20, length=8)
    states, transition = task.trajectories(300, generator())
    features = task.features(states)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(300, 9))
    assert (states[:, 1:] - features[:, :-1] @ transition.mT).std() == pytest.approx(0.01, rel=0.05)
    assert states[:, 0].abs().max() <= 0.25


@pytest.mark.parametrize("map_name", ["gaussian", "orthogonal"])
def test_pairs_follow_the_map_of_their_task(map_name: str) -> None:
    task = ContextRegression(size=4, pairs=3, second_pairs=2, map=map_name, noise=0.1)
    x, y, maps = task.sample(2_000, generator())
    noise = torch.cat((y[:, :3] - x[:, :3] @ maps[:, 0].mT, y[:, 3:] - x[:, 3:] @ maps[:, 1].mT), dim=1)
    assert noise.std() == pytest.approx(0.1, rel=0.03)
    assert not torch.equal(maps[:, 0], maps[:, 1])
    assert maps.square().sum((-1, -2)).mean() == pytest.approx(4, rel=0.03)


def test_pairs_stand_where_they_are_said_to() -> None:
    task = TASKS[-1]
    assert isinstance(task, ContextRegression)
    batch, (x, y, _) = task.draw(3, generator()), task.sample(3, generator())
    assert list(task.query_positions()) == [5, 8, 11, 14, 17, 20]
    assert batch["places"][0].tolist() == [2, 3, 4, 5, 6] + [0, 0, 1] * 6
    assert batch["weights"][0].tolist() == [0] * 5 + [1, 0, 0] * 6
    assert torch.equal(batch["inputs"][:, 5::3], x)
    assert torch.equal(batch["inputs"][:, 6::3], y)
    assert torch.equal(batch["targets"][:, 5::3], y)
    assert not batch["inputs"][batch["places"] > 0].any()


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (LinearDynamics, {"hidden": 3}, "hidden"),
        (LinearDynamics, {"noise": -1}, "noise"),
        (ContextRegression, {"outputs": 11}, "outputs"),
        (ContextRegression, {"outputs": 2, "map": "orthogonal"}, "outputs"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(
    kind: type[VectorTask], options: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as error:
        kind.build(options)
    assert "\n" not in str(error.value)
