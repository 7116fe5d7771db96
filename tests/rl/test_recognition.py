"""Task recognition: the Dirichlet-multinomial evidence, the filter over contexts, and whole streams of games."""

import io
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_reference import PixelModel, RecognitionReference, filter_by_paths
from torch import Tensor

pytest.importorskip("gymnasium")

from avl_plugins.rl.recognition import TaskRecognition, filter_contexts, observation_levels, window_log_evidence


def game(seed: int, shape: tuple[int, ...] = (6, 6), levels: int = 4) -> Tensor:
    """Probabilities of the levels at each pixel, mostly near 0 or 1."""
    logits = 3 * torch.randn(*shape, levels, generator=torch.Generator().manual_seed(seed))
    return logits.softmax(-1)


def play(probabilities: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    flat = probabilities.flatten(0, -2)
    drawn = torch.multinomial(flat, steps, replacement=True, generator=generator)
    return drawn.T.reshape(steps, *probabilities.shape[:-1])


def stream(visits: list[int], steps: int, seed: int = 0, **kwargs: int) -> tuple[Tensor, list[int]]:
    """Observations of games 0, 1, ... visited in turn, and the game at each step."""
    generator = torch.Generator().manual_seed(seed)
    parts = [play(game(100 + v, **kwargs), steps, generator) for v in visits]
    return torch.cat(parts), [v for v in visits for _ in range(steps)]


def observe_all(recognition: TaskRecognition, observations: Tensor) -> list[int]:
    found = [recognition.observe(o) for o in observations]
    return [context for context in found if context is not None]


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, Tensor):
            assert value.dtype == b[name].dtype
            assert torch.equal(value, b[name]), name
        else:
            assert value == b[name], name


def random_models(seed: int, models: int, pixels: int, levels: int) -> tuple[Tensor, Tensor]:
    """Counts of observations drawn at random, a different number for each model."""
    generator = torch.Generator().manual_seed(seed)
    learnt = torch.randint(0, 50, (models,), generator=generator)
    counts = torch.zeros(models, pixels, levels, dtype=torch.int32)
    for k in range(models):
        for x in torch.randint(0, levels, (int(learnt[k]), pixels), generator=generator):
            counts[k, torch.arange(pixels), x] += 1
    return counts, learnt


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    models=st.integers(0, 4),
    pixels=st.integers(1, 6),
    levels=st.integers(2, 5),
    window=st.integers(1, 11),
    concentration=st.sampled_from([1e-9, 0.01, 0.5, 3.0]),
)
def test_evidence_is_the_sequential_product_and_the_closed_form(seed, models, pixels, levels, window, concentration):
    counts, learnt = random_models(seed, models, pixels, levels)
    x = torch.randint(0, levels, (window, pixels), generator=torch.Generator().manual_seed(seed + 1))
    found = window_log_evidence(counts, learnt, x, concentration=concentration)

    sequential = []
    for k in range(models + 1):
        model = PixelModel(pixels, levels, concentration)
        if k < models:
            model.counts, model.learnt = counts[k].tolist(), int(learnt[k])
        total = 0.0
        for observation in x.tolist():
            total += model.log_p(observation)
            model.learn(observation)
        sequential.append(total)
    torch.testing.assert_close(found, torch.tensor(sequential, dtype=torch.float64), rtol=1e-12, atol=1e-9)

    prior = torch.cat([counts, torch.zeros(1, pixels, levels)]).double() + concentration
    times = torch.nn.functional.one_hot(x, levels).sum(0)
    whole = prior.sum(-1)
    closed = (prior + times).lgamma().sum((1, 2)) - prior.lgamma().sum((1, 2))
    closed += (whole.lgamma() - (whole + window).lgamma()).sum(1)
    torch.testing.assert_close(found, closed, rtol=1e-9, atol=1e-7)


def test_evidence_by_hand():
    """Two pixels, two levels, a = 1. Hold-out: 1/2 each, then 2/3 where the level is the same and 1/3 elsewhere."""
    counts = torch.tensor([[[3, 0], [1, 2]]], dtype=torch.int32)
    x = torch.tensor([[0, 0], [0, 1]])
    found = window_log_evidence(counts, torch.tensor([3]), x, concentration=1.0)
    expected = torch.tensor([4 / 5 * 2 / 5 * 5 / 6 * 3 / 6, 1 / 2 * 1 / 2 * 2 / 3 * 1 / 3], dtype=torch.float64).log()
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("states", [1, 2, 3])
def test_filter_equals_the_sum_over_all_paths(states):
    generator = torch.Generator().manual_seed(states)
    evidence = torch.randn(5, states, generator=generator, dtype=torch.float64)
    alphas = [1 / t for t in range(2, 7)]
    first = torch.rand(states, generator=generator, dtype=torch.float64).softmax(0)
    posterior = first
    for log_evidence, alpha in zip(evidence, alphas, strict=True):
        posterior = filter_contexts(posterior, log_evidence, alpha=alpha, kept=states)
        assert posterior.sum().item() == pytest.approx(1, abs=1e-14)
    torch.testing.assert_close(posterior, filter_by_paths(first.tolist(), evidence, alphas), rtol=1e-12, atol=0)


def test_a_new_state_is_entered_by_a_switch_and_a_certain_posterior_is_left_again():
    certain = torch.tensor([1.0, 0.0], dtype=torch.float64)
    even = torch.zeros(3, dtype=torch.float64)
    found = filter_contexts(certain, even, alpha=0.2, kept=3)
    torch.testing.assert_close(found, torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64))
    found = filter_contexts(certain, even, alpha=0.2, kept=2)  # given that it is not the hold-out
    torch.testing.assert_close(found, torch.tensor([8 / 9, 1 / 9], dtype=torch.float64))
    far = torch.tensor([-9000.0, 0.0], dtype=torch.float64)
    assert filter_contexts(certain, far, alpha=1e-6, kept=2).tolist() == [0.0, 1.0]
    rounded = torch.tensor([1.0000000000000002, 0.0], dtype=torch.float64)
    assert filter_contexts(rounded, even[:2], alpha=1e-6, kept=2).isfinite().all()


@pytest.mark.parametrize("max_contexts", [None, 2])
@pytest.mark.parametrize("window", [1, 3, 4])
def test_streams_equal_the_reference(window, max_contexts):
    observations, _ = stream([0, 1, 0, 2, 1, 2], 4 * window + 1, shape=(3, 2))  # with windows across two games
    recognition = TaskRecognition(shape=(3, 2), levels=4, window=window, concentration=0.3, max_contexts=max_contexts)
    reference = RecognitionReference(6, 4, 0.3, window, max_contexts)
    for t in range(len(observations) // window):
        part = observations[t * window : (t + 1) * window]
        found = observe_all(recognition, part)
        assert found == [reference.learn_window(part.flatten(1).tolist())]
        torch.testing.assert_close(
            recognition.posterior, torch.tensor(reference.posterior, dtype=torch.float64), rtol=1e-9, atol=1e-12
        )
        assert recognition.posterior.sum().item() == pytest.approx(1, abs=1e-12)
        state = recognition.state_dict()
        assert state["counts"].tolist() == [model.counts for model in reference.models]
        assert state["learnt"].tolist() == [model.learnt for model in reference.models]
    assert recognition.windows == reference.windows
    assert recognition.contexts == (len(reference.models) if max_contexts is None else 2)
    assert recognition.contexts >= 2


@pytest.mark.parametrize("seed", range(3))
def test_three_games_that_alternate_are_three_contexts_and_known_again(seed):
    visits = [0, 1, 2, 1, 0, 2, 0, 1, 2]
    observations, truth = stream(visits, 40, seed=seed)
    recognition = TaskRecognition(shape=(6, 6), levels=4)
    assert recognition.context is None
    found = observe_all(recognition, observations)
    assert recognition.contexts == 3
    assert found == truth[::4]
    assert recognition.context == found[-1] == int(recognition.posterior.argmax())


def test_unlike_planes_are_two_contexts():
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(2, 10, 10, 4, generator=generator) < 0.5
    recognition = TaskRecognition(shape=(10, 10, 4), levels=2)
    assert observe_all(recognition, planes.repeat_interleave(8, 0).repeat(2, 1, 1, 1)) == [0, 0, 1, 1, 0, 0, 1, 1]


def test_observe_answers_at_the_end_of_each_window_only():
    recognition = TaskRecognition(shape=(2,), levels=2, window=3)
    found = [recognition.observe(torch.tensor([0, 1])) for _ in range(7)]
    assert found == [None, None, 0, None, None, 0, None]
    assert recognition.windows == 2
    numpy = recognition.observe(np.array([0, 1], dtype=np.uint8)), recognition.observe(np.array([False, True]))
    assert numpy == (None, 0)


def test_an_observation_is_not_kept_by_reference():
    recognition = TaskRecognition(shape=(2,), levels=2, window=2)
    buffer = torch.tensor([0, 1])
    recognition.observe(buffer)
    buffer[:] = 1
    recognition.observe(buffer)
    assert recognition.state_dict()["counts"].tolist() == [[[1, 1], [0, 2]]]


def test_only_the_best_model_changes():
    observations, truth = stream([0, 1, 2, 1, 0], 12)
    recognition = TaskRecognition(shape=(6, 6), levels=4)
    observe_all(recognition, observations)
    for t in range(4):
        before = recognition.state_dict()
        part, _ = stream([2], 4, seed=50 + t)
        assert observe_all(recognition, part) == [2]
        after = recognition.state_dict()
        assert torch.equal(after["counts"][:2], before["counts"][:2])
        assert torch.equal(after["learnt"], before["learnt"] + torch.tensor([0, 0, 4]))
        times = torch.nn.functional.one_hot(part.flatten(1), 4).sum(0)
        assert torch.equal(after["counts"][2], before["counts"][2] + times)
    assert truth[-1] == 0


@pytest.mark.parametrize("cut", [0, 2, 57, 60, 110])
def test_a_resumed_run_is_bit_equal(cut):
    observations, _ = stream([0, 1, 2, 0, 1, 2], 21)
    whole = TaskRecognition(shape=(6, 6), levels=4)
    expected = observe_all(whole, observations)

    first = TaskRecognition(shape=(6, 6), levels=4)
    found = observe_all(first, observations[:cut])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = TaskRecognition(shape=(6, 6), levels=4)
    observe_all(second, observations[30:45])  # it may have been used before
    second.load_state_dict(saved)
    assert second.context == first.context
    found += observe_all(second, observations[cut:])
    assert found == expected
    assert_same(second.state_dict(), whole.state_dict())
    assert_same(saved, first.state_dict())  # copied, not shared


def test_a_state_does_not_change_with_its_owner():
    observations, _ = stream([0, 1], 9)
    recognition = TaskRecognition(shape=(6, 6), levels=4)
    observe_all(recognition, observations[:10])
    state = recognition.state_dict()
    kept = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
    observe_all(recognition, observations[10:])
    assert_same(state, kept)


def test_a_failed_load_changes_nothing():
    observations, _ = stream([0, 1], 11)
    recognition = TaskRecognition(shape=(6, 6), levels=4)
    observe_all(recognition, observations)
    before = recognition.state_dict()
    good = recognition.state_dict()
    cases = [
        ({k: v for k, v in good.items() if k != "counts"}, r"lacks entries: \['counts'\]"),
        (good | {"extra": 1}, r"has unknown entries: \['extra'\]"),
        (good | {"settings": {**good["settings"], "window": 5}}, "other settings"),
        (good | {"counts": good["counts"] + 1}, "contradicts itself"),
        (good | {"counts": good["counts"].float()}, "contradicts itself"),
        (good | {"counts": good["counts"][:, :-1]}, "contradicts itself"),
        (good | {"learnt": good["learnt"] + 1}, "contradicts itself"),
        (good | {"posterior": good["posterior"] * torch.nan}, "contradicts itself"),
        (good | {"posterior": good["posterior"][:1]}, "contradicts itself"),
        (good | {"windows": 17}, "contradicts itself"),
        (good | {"context": 2}, "contradicts itself"),
        (good | {"context": None}, "contradicts itself"),
        (good | {"recent": good["recent"] + 4}, "levels from 0 to 3, got"),
        (good | {"recent": good["recent"][:, 1:]}, "must have the shape"),
        (good | {"recent": torch.zeros(4, 36, dtype=torch.int64)}, "contradicts itself"),
    ]
    for state, message in cases:
        with pytest.raises(ValueError, match=message):
            recognition.load_state_dict(state)
        assert_same(recognition.state_dict(), before)
    with pytest.raises(ValueError, match="has 2 contexts, max_contexts is 1"):
        TaskRecognition(shape=(6, 6), levels=4, max_contexts=1).load_state_dict(good)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": ()}, "shape must be"),
        ({"shape": (4, 0)}, "shape must be"),
        ({"shape": (4,), "levels": 1}, "levels must be an integer >= 2, got 1"),
        ({"shape": (4,), "window": 0}, "window must be an integer >= 1, got 0"),
        ({"shape": (4,), "concentration": 0.0}, "concentration must be"),
        ({"shape": (4,), "concentration": float("nan")}, "concentration must be"),
        ({"shape": (4,), "max_contexts": 0}, "max_contexts must be"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TaskRecognition(**arguments)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (torch.zeros(2, 3), "must be integer levels, got torch.float32: see observation_levels"),
        (torch.zeros(3, 2, dtype=torch.int64), r"must have the shape \(2, 3\), got \(3, 2\)"),
        (torch.full((2, 3), 4), "must have levels from 0 to 3, got 4 to 4"),
        (torch.full((2, 3), -1), "must have levels from 0 to 3, got -1 to -1"),
    ],
)
def test_wrong_observations_change_nothing(observation, message):
    recognition = TaskRecognition(shape=(2, 3), levels=4, window=2)
    for _ in range(3):
        recognition.observe(torch.ones(2, 3, dtype=torch.int64))
    before = recognition.state_dict()
    with pytest.raises(ValueError, match=message):
        recognition.observe(observation)
    assert_same(recognition.state_dict(), before)


@pytest.mark.parametrize(("levels", "downscale"), [(16, 2), (2, 1), (256, 1), (10, 4)])
def test_images_become_levels(levels, downscale):
    stack = torch.randint(0, 256, (3, 4, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = observation_levels(stack, levels=levels, downscale=downscale)
    assert found.dtype == torch.int64
    assert found.shape == (3, 8 // downscale, 12 // downscale)
    for b in range(3):
        for i in range(8 // downscale):
            for j in range(12 // downscale):
                block = stack[b, 3, i * downscale : (i + 1) * downscale, j * downscale : (j + 1) * downscale]
                assert found[b, i, j].item() == int(block.double().mean().item() / 256 * levels)
    assert torch.equal(found, observation_levels(stack[:, -1].numpy(), levels=levels, downscale=downscale))


def test_the_extremes_of_grey_are_the_extreme_levels():
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 4, 84, 84)
    found = observation_levels(black_and_white)
    assert found.shape == (2, 42, 42)
    assert found.flatten(1).unique(dim=1).tolist() == [[0], [15]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_planes_become_the_number_of_the_last_that_is_on(dtype):
    planes = (torch.rand(3, 5, 6, 4, generator=torch.Generator().manual_seed(0)) < 0.3).to(dtype)
    expected = [
        [[max((c + 1 for c in range(4) if planes[b, i, j, c]), default=0) for j in range(6)] for i in range(5)]
        for b in range(3)
    ]
    assert observation_levels(planes, levels=5).tolist() == expected
    assert observation_levels(planes.movedim(-1, 1), levels=5, channels=1).tolist() == expected


@pytest.mark.parametrize(
    ("observations", "arguments", "message"),
    [
        (torch.zeros(84, 84, dtype=torch.uint8), {}, r"must be images \(B, frames, H, W\)"),
        (torch.zeros(1, 4, 84, 83, dtype=torch.uint8), {}, "downscale must divide"),
        (torch.zeros(1, 4, 84, 84, dtype=torch.uint8), {"downscale": 0}, "downscale must be an integer >= 1, got 0"),
        (torch.zeros(1, 4, 84, 84, dtype=torch.uint8), {"levels": 257}, "levels must be from 2 to 256"),
        (torch.full((1, 10, 10, 4), 0.5), {}, "planes of 0 and 1, or images as uint8"),
        (torch.full((1, 10, 10, 4), torch.nan), {}, "planes of 0 and 1, or images as uint8"),
        (torch.zeros(1, 10, 10, 4), {"levels": 4}, "levels must be at least 5 for 4 planes"),
        (torch.zeros(1, 10, 10, 4), {"channels": 2}, "channels must be -1 or 1, got 2"),
        (torch.zeros(10, 4), {}, "planes need 3 or more dimensions"),
    ],
)
def test_wrong_batches(observations, arguments, message):
    with pytest.raises(ValueError, match=message):
        observation_levels(observations, **arguments)


def test_ten_contexts_at_the_papers_size_cost_little():
    observations, _ = stream(list(range(10)), 8, shape=(42, 42), levels=16)
    recognition = TaskRecognition(shape=(42, 42))
    observe_all(recognition, observations)
    assert recognition.contexts == 10
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        observe_all(recognition, observations[:4])
        seconds.append((time.perf_counter() - start) / 4)
    assert min(seconds) < 1e-3  # 0.1 to 0.3 ms on one thread of a busy CPU


def test_match_names_the_best_context_and_learns_nothing():
    model = TaskRecognition(shape=(6, 6), levels=4)
    with pytest.raises(ValueError, match="no context yet"):
        model.match(torch.zeros(4, 6, 6, dtype=torch.long))
    generator = torch.Generator().manual_seed(0)
    games = [game(seed) for seed in (1, 2, 3)]
    for number in (0, 1, 2, 0, 1, 2):
        for observation in play(games[number], 40, generator):
            model.observe(observation)
    assert model.contexts == 3
    before = model.state_dict()
    found = [model.match(play(games[number], 4, generator)) for number in (2, 0, 1, 1)]
    assert found == [2, 0, 1, 1]
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in ("counts", "learnt", "posterior"))
