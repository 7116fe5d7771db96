"""A load that fails, or is interrupted, changes nothing; a file takes no more memory than its size."""

import copy
import io
import random
import re
import struct
import zipfile
from collections import Counter, defaultdict, deque

import numpy as np
import pytest
import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import LRSchedulerPlugin, MASPlugin
from checkpoint_cases import Distill, Once, benchmark, build, differences, everything, train_and_evaluate, unchanged
from torch import nn

from avl_plugins.checkpoint import archive
from avl_plugins.checkpoint import file as checkpoint_file
from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.past_data import PastData
from avl_plugins.checkpoint.plain import KIND
from avl_plugins.checkpoint.strategy_state import capture, random_from_plain, restore
from avl_plugins.checkpoint.undo import undo_for

DIGITS = benchmark("multihead", train=100, test=50)


def built(seed=3):
    """With a metric, a scheduler, a plugin of ours, one of Avalanche's and one with a phase of its own."""
    strategy = build("ewc", "multihead", "adam", seed=seed, plugins=[MASPlugin(1.0), Once(), Distill()], train_epochs=1)
    strategy.plugins.insert(0, LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(strategy.optimizer, 1)))
    return strategy


@pytest.fixture(scope="module")
def state():
    strategy = built()
    train_and_evaluate(strategy, DIGITS.train_stream[:2], DIGITS.test_stream)
    return capture(strategy)


def used():
    """A strategy with a past of its own, and with fewer heads."""
    strategy = built(seed=11)
    train_and_evaluate(strategy, DIGITS.train_stream[:1], DIGITS.test_stream[:1])
    return strategy


def paths(value, path=()):
    """The places in a tree of plain values."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, item in entries:
        yield from paths(item, (*path, key))


OTHERS = {"None": None, "text": "x", "number": 3, "list": [], "dict": {}, "tensor": torch.zeros(2, 3)}
# What may be anything, as far as a load can tell: what an optimizer keeps of a parameter, the values of its settings
# and what plugins keep, numbers of any kind, and random states that the generators take.
FREE = re.compile(r"(optimizer (state|groups|learned)|plugins \d+ 1|model (state|class|tasks)|own|random)( |$)")


@pytest.mark.parametrize("seed", range(8))
def test_entries_that_are_missing_or_of_another_kind(state, seed):
    """Either they are refused, and everything is as it was, or a file is free to have them."""
    chance, strategy, refused = random.Random(seed), used(), 0
    before, back = everything(strategy), undo_for(strategy)
    for _ in range(40):
        part = chance.choice(list(state))
        *place, key = chance.choice([path for path in paths(state) if path[0] == part])
        owner = forged = copy.deepcopy(state)
        for step in place:
            owner = owner[step]
        other = chance.choice([None, *OTHERS])
        if other is None:
            del owner[key]
        else:
            owner[key] = copy.deepcopy(OTHERS[other])
        if differences(state, forged) == []:
            continue
        try:
            restore(strategy, forged)
        except ValueError:
            refused += 1
        else:
            assert FREE.match(" ".join(map(str, [*place, key]))), (place, key, other)
            back()
            random_from_plain(before["state"]["random"])
        assert differences(before, everything(strategy)) == [], (place, key, other)
    assert refused >= 25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("past_data"), "it has no entry 'past_data'"),
        (lambda s: s.pop("progress"), "it has no entry 'progress'"),
        (lambda s: s.update(experiences="2"), "its entry 'experiences' is a str"),
        (lambda s: s.update(experiences=1), "its clock does not show the number of experiences"),
        (lambda s: s.update(stop_training=None), "its entry 'stop_training' is a NoneType"),
        (lambda s: s["model"].pop("frozen"), "it lacks 'frozen'"),
        (lambda s: s["model"]["training"].pop("features"), "only in the file, or only in the model: \\['features'\\]"),
        (lambda s: s["model"]["training"].update(features=None), "neither True nor False"),
        (lambda s: s["optimizer"]["groups"][0].update(lr="0.1"), "optimizer lr is a str in it, and a float"),
        (lambda s: s["optimizer"]["groups"][0].update(eps=None), "optimizer eps is a NoneType in it"),
        (lambda s: s["optimizer"]["state"].update(nobody={}), "parameters that the model does not have: nobody"),
        (lambda s: plugin(s, "Clock").pop("train_iterations"), "Clock: entries missing or unknown: train_iterations"),
        (lambda s: plugin(s, "Clock").update(train_iterations="x"), "Clock.train_iterations is a str in it, and a int"),
        (lambda s: plugin(s, "MASPlugin").pop("params"), "MASPlugin: entries missing or unknown: params"),
        (lambda s: plugin(s, "EvaluationPlugin").update(all_metric_results=[]), "all_metric_results is a list in it"),
        (lambda s: metric(s, "TaskAwareAccuracy").pop("_mean_accuracy"), "it holds a metric .* without _mean_accuracy"),
        (lambda s: metric(s, "TaskAwareAccuracy").update(_mean_accuracy=0.5), "_mean_accuracy is a float in it"),
        (lambda s: metric(s, "TaskAwareAccuracy").update(_mean_accuracy=None), "_mean_accuracy is a NoneType in it"),
        (lambda s: metric(s, "Mean").update(summed="much"), "Mean.summed is a str in it, and a float"),
    ],
)
def test_what_is_wrong_is_named(state, change, message):
    forged, strategy = copy.deepcopy(state), used()
    change(forged)
    with unchanged(strategy), pytest.raises(ValueError, match=message):
        restore(strategy, forged)


def plugin(state, name):
    return dict(state["plugins"])[name]


def metric(state, name):
    """The attributes of the first metric of a class, in any depth."""
    waiting = [plugin(state, "EvaluationPlugin")["metrics"]]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, dict) and value.get(KIND) == "metric" and value["class"] == name:
            return value["attributes"]
        if isinstance(value, (dict, list, tuple)):
            waiting.extend(value.values() if isinstance(value, dict) else value)
    raise LookupError(name)


STAGES = {
    "before anything": (checkpoint_file.archive, "read"),
    "growing the model": (nn.Module, "register_buffer"),
    "filling the model": (nn.Module, "load_state_dict"),
    "filling the optimizer": (torch.optim.Optimizer, "load_state_dict"),
    "in the first plugin of ours": (Once, "load_state_dict"),
    "in the last plugin of ours": (Distill, "load_state_dict"),
    "in a scheduler": (torch.optim.lr_scheduler.LRScheduler, "load_state_dict"),
    "in the random states": (np.random, "set_state"),
    "at the end": (checkpoint_file, "_leave"),
    "while it waits for TensorBoard": (checkpoint_file, "_wait_for_later_name"),
    "when it opens TensorBoard": (checkpoint_file, "SummaryWriter"),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_interruption_at_any_stage(tmp_path, state, monkeypatch, stage, done, error):
    archive.write(tmp_path / "run.pt", state)
    strategy = used()
    strategy.evaluator.loggers.append(TensorboardLogger(tmp_path / "tb"))
    writer = strategy.evaluator.loggers[-1].writer
    owner, name = STAGES[stage]
    original, armed = getattr(owner, name), [True]

    def strike(*args, **kwargs):
        if armed and done:
            original(*args, **kwargs)
        if armed:
            armed.clear()
            raise error("struck")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, unchanged(strategy):
        patch.setattr(owner, name, strike)
        # An interruption passes; what else can go wrong is a ValueError that says what.
        expected = error if error is KeyboardInterrupt or stage == "before anything" else ValueError
        with pytest.raises(expected, match="struck"):
            load_checkpoint(strategy, tmp_path / "run.pt")
        assert armed == []
    assert strategy.evaluator.loggers[-1].writer is writer
    assert load_checkpoint(strategy, tmp_path / "run.pt") == 2
    writer.close()


@pytest.mark.filterwarnings("ignore:task . has not been trained on yet")
@pytest.mark.parametrize(("kind", "model"), [("dgr", "incremental"), ("progressive", "progressive"), ("den", "den")])
def test_a_failed_load_leaves_our_methods_as_they_were(kind, model):
    """The objects, too, that their plugins hold: DGR's scholar, DEN's and Progressive's networks."""
    digits, strategy = benchmark(model, train=100, test=50), build(kind, model, "adam", train_epochs=1)
    other = build(kind, model, "adam", seed=11, train_epochs=1)
    for number, each in ((2, other), (1, strategy)):
        train_and_evaluate(each, digits.train_stream[:number], digits.test_stream[:1])
    forged = capture(other)
    forged["random"] = {}  # is missed when everything else has been filled
    with unchanged(strategy), pytest.raises(ValueError, match="it lacks 'python'"):
        restore(strategy, forged)
    restore(strategy, capture(other))


def test_an_interrupted_load_leaves_a_cumulative_its_data(tmp_path, monkeypatch):
    strategy = build("cumulative", "multihead")
    train_and_evaluate(strategy, DIGITS.train_stream[:2], DIGITS.test_stream)
    save_checkpoint(strategy, tmp_path / "run.pt")
    fresh = build("cumulative", "multihead")
    fresh.train(DIGITS.train_stream[0])
    dataset = fresh.dataset

    def strike(strategy):
        assert any(isinstance(plugin, PastData) for plugin in strategy.plugins)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_file, "_leave", strike)
    with unchanged(fresh), pytest.raises(KeyboardInterrupt):
        load_checkpoint(fresh, tmp_path / "run.pt")
    assert fresh.dataset is dataset
    assert not any(isinstance(plugin, PastData) for plugin in fresh.plugins)


def test_undo_puts_back_objects_and_values():
    """Whatever has been done in place: to containers, tensors, arrays, generators, and to what hangs on them."""

    class Holder:
        pass

    holder, part, layer = Holder(), Holder(), nn.Linear(2, 2)
    part.numbers, part.back = [1.0, 2.0], holder
    view = layer.weight.detach()[0]
    holder.__dict__.update(
        part=part,
        list=[part],
        dict={"a": {1, 2}},
        deque=deque([1], maxlen=2),
        counts=Counter("aab"),
        lists=defaultdict(list, {1: [2]}),
        tensor=torch.arange(3.0),
        array=np.arange(3.0),
        layer=layer,
        view=view,
        expanded=torch.ones(1).expand(4),
        generators=(torch.Generator(), np.random.default_rng(3), np.random.RandomState(3), random.Random(3)),
    )
    weight, values, objects = layer.weight, layer.weight.detach().clone(), dict(vars(holder))
    draws = lambda: [  # noqa: E731
        torch.rand((), generator=holder.generators[0]).item(),
        holder.generators[1].random(),
        holder.generators[2].random_sample(),
        holder.generators[3].random(),
    ]
    undo = undo_for(holder)
    first = draws()
    for _ in range(2):  # as often as one likes
        draws()
        part.numbers.append(3.0)
        part.more = 1
        holder.list.clear()
        holder.dict["a"].add(3)
        holder.deque.append(5)
        holder.counts.update("z")
        holder.lists[7].append(1)
        holder.tensor.zero_()
        holder.array[:] = 0
        weight.data = torch.zeros(5, 5)
        weight.requires_grad_(False)
        layer.bias = None
        holder.new, holder.part = 1, None
        undo()
        assert {k: id(v) for k, v in vars(holder).items()} == {k: id(v) for k, v in objects.items()}
        assert vars(part).keys() == {"numbers", "back"}
        assert part.numbers == [1.0, 2.0]
        assert holder.list == [part]
        assert holder.dict == {"a": {1, 2}}
        assert list(holder.deque) == [1]
        assert holder.counts == Counter("aab")
        assert dict(holder.lists) == {1: [2]}
        assert holder.tensor.tolist() == holder.array.tolist() == [0.0, 1.0, 2.0]
        assert layer.weight is weight
        assert layer.bias is not None
        assert torch.equal(weight, values)
        assert weight.requires_grad
        assert view.data_ptr() == weight.data_ptr()  # still a view of it
        assert draws() == first
        undo()


def rewritten(content, change=lambda pickled: pickled, compression=zipfile.ZIP_STORED):
    """A file as torch writes it, with another pickle or another packing."""
    packed, out = io.BytesIO(), io.BytesIO()
    torch.save(content, packed)
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


def overlapping(content):
    """A file in which a hundred entries are the same bytes."""
    out = io.BytesIO(rewritten(content))
    with zipfile.ZipFile(out, "a") as archive:
        tensor = max(archive.filelist, key=lambda entry: entry.file_size)
        for number in range(100):
            another = copy.copy(tensor)
            another.filename = f"archive/data/{100 + number}"
            archive.filelist.append(another)
        archive._didModify = True
    return out.getvalue()


def checkpoint_of(state):
    return {"format": "avl_plugins checkpoint 1", "sha256": "0" * 64, "state": state}


class Bytes:
    """Pickled as the call of something harmless, that takes a gigabyte."""

    def __reduce__(self):
        return (bytearray, (2**30,))


def nested(depth):
    value = [0]
    for _ in range(depth):
        value = [value, value]
    return value


def integer(number):
    return b"J" + struct.pack("<i", number)


def elements_of(number):
    """Change the number of elements in the storage of a tensor of four."""
    return lambda pickled: pickled.replace(b"K\x04t", integer(number) + b"t")


def offset_of(number):
    return lambda pickled: pickled.replace(b"QK\x00K\x04\x85", b"Q" + integer(number) + b"K\x04\x85")


def size_of(number):
    return lambda pickled: pickled.replace(b"QK\x00K\x04\x85", b"QK\x00" + integer(number) + b"\x85")


BIG = 2**28
shared = torch.zeros(10_000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: rewritten(checkpoint_of(torch.zeros(1).expand(BIG))), "shape \\(268435456,\\) has strides \\(0,\\)"),
        (lambda: rewritten(checkpoint_of(torch.zeros(2).as_strided((2**14, 2**14), (0, 0)))), "has strides"),
        (lambda: rewritten(checkpoint_of(torch.zeros(100)[::2])), "has strides \\(2,\\)"),
        (lambda: rewritten(checkpoint_of({KIND: "png", "value": torch.zeros(1).expand(BIG)})), "has strides"),
        (lambda: rewritten(checkpoint_of([shared] * 50)), "take more memory than the file"),
        (
            lambda: rewritten(checkpoint_of([shared[:9000], shared[:9001], shared[1:]])),
            "take more memory than the file",
        ),
        (lambda: rewritten(checkpoint_of(nested(50))), "take more memory than the file"),
        (lambda: rewritten(checkpoint_of(Bytes())), "it names .*bytearray"),
        (lambda: rewritten(checkpoint_of(torch.zeros(2**20)), compression=zipfile.ZIP_DEFLATED), "unpacks to more"),
        (lambda: overlapping(checkpoint_of(torch.zeros(1000))), "unpacks to more"),
        (lambda: rewritten(checkpoint_of(torch.arange(4.0)), size_of(2**30)), "RuntimeError"),
        (lambda: rewritten(checkpoint_of(torch.arange(4.0)), offset_of(2**30)), "RuntimeError"),
        (lambda: rewritten(checkpoint_of(torch.arange(4.0)), elements_of(2**30)), "RuntimeError"),
    ],
)
def test_a_file_takes_no_more_memory_than_its_size(tmp_path, content, message):
    """Where the checksum is right, too: it is computed after that, and would read each of the elements."""
    path = tmp_path / "run.pt"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=f"is truncated, damaged or not a checkpoint .*{message}"):
        load_checkpoint(build(), path)
