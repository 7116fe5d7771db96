"""What is known of the state of Avalanche's own classes, and what other classes have to say of theirs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from avalanche.training import plugins
from avalanche.training.losses import MaskedCrossEntropy
from avalanche.training.plugins.clock import Clock
from avalanche.training.supervised import Cumulative, JointTraining, StreamingLDA
from avalanche.training.templates.base import BaseTemplate
from avalanche.training.templates.base_sgd import PeriodicEval

from avl_plugins.checkpoint.plain import SCALARS, is_wiring, keeps_state

__all__ = ["UnsaveableError", "keeps_tensors_on_device", "refuse_hidden_state", "state_names"]


class UnsaveableError(ValueError):
    """A strategy has state that no checkpoint can hold, as far as is known.

    A plugin, strategy or criterion says what is its state by `state_dict()` and `load_state_dict(state)`. One without
    these may have as attributes: functions, files, devices, references to the strategy and its model, optimizer and
    plugins, and what it names in a class attribute, as torch's modules do:

        class Every(SupervisedPlugin):
            __constants__ = ("iterations",)  # how it was built, and will be built again before a load

    Any other attribute could have been changed in training, and be lost. Of Avalanche's classes, which have no
    `state_dict()`, it is known what their attributes are; see `save_checkpoint`.
    """


@dataclass(frozen=True)
class Known:
    """Attributes of a class, and of those of its objects with a dot."""

    state: tuple[str, ...] = ()
    """What training changes, and a checkpoint keeps."""
    settings: tuple[str, ...] = ()
    """How it was built, and what the next `train()` or `eval()` makes anew."""
    on_device: bool = False
    """Whether floating-point tensors of the state are where the model is; metrics, for example, keep theirs apart."""


_KNOWN: dict[type, Known] = {
    BaseTemplate: Known(
        settings=(
            *("model", "optimizer", "plugins", "evaluator", "clock", "device", "_criterion", "optimized_param_id"),
            *("train_epochs", "train_mb_size", "eval_mb_size", "eval_every", "retain_graph", "_distributed_check"),
            *("experience", "is_training", "current_eval_stream", "_eval_streams", "_stop_training"),
            *("adapted_dataset", "dataloader", "mbatch", "mb_output", "loss"),
        )
    ),
    Cumulative: Known(settings=("dataset",)),  # found in the stream again
    JointTraining: Known(("_is_fitted",), ("_experiences",)),
    StreamingLDA: Known(
        ("muK", "cK", "Sigma", "Lambda", "num_updates", "prev_num_updates"),
        ("input_size", "shrinkage_param", "streaming_update_sigma"),
        on_device=True,
    ),
    Clock: Known(tuple(vars(Clock()))),
    PeriodicEval: Known(("do_final", "_is_eval_updated"), ("eval_every", "peval_mode", "do_initial")),
    plugins.EvaluationPlugin: Known(
        ("_active", "last_metric_results", "all_metric_results", "_metric_values", "metrics"),
        ("supports_distributed", "collect_all", "strict_checks", "loggers"),
    ),
    plugins.EarlyStoppingPlugin: Known(
        ("best_state", "best_val", "best_step"),
        (
            *("val_stream_name", "patience", "verbose", "peval_mode", "margin"),
            *("metric_name", "metric_key", "operator"),
        ),
    ),
    plugins.LRSchedulerPlugin: Known(
        ("scheduler", "rolling_metric", "_was_training", "_just_validated", "_executed_train_iteration"),
        ("reset_scheduler", "reset_lr", "metric", "step_granularity", "first_epoch_only", "first_exp_only"),
    ),
    plugins.EWCPlugin: Known(
        ("saved_params", "importances"),
        ("ewc_lambda", "mode", "decay_factor", "keep_importance_data"),
        on_device=True,
    ),
    plugins.SynapticIntelligencePlugin: Known(
        ("ewc_data", "syn_data"), ("si_lambda", "eps", "excluded_parameters", "_device")
    ),
    plugins.MASPlugin: Known(("params", "importance"), ("_lambda", "alpha", "verbose"), on_device=True),
    plugins.RWalkPlugin: Known(
        (
            *("checkpoint_params", "checkpoint_loss", "checkpoint_scores", "iter_grad", "iter_importance"),
            *("iter_params", "exp_scores", "exp_params", "exp_importance", "exp_penalties"),
        ),
        ("ewc_alpha", "ewc_lambda", "delta_t"),
        on_device=True,
    ),
    plugins.GEMPlugin: Known(
        ("memory_x", "memory_y", "memory_tid"), ("patterns_per_experience", "memory_strength", "G")
    ),
    plugins.GSS_greedyPlugin: Known(
        ("ext_mem_list_x", "ext_mem_list_y", "ext_mem_list_current_index", "buffer_score"),
        ("mem_size", "mem_strength", "device"),
    ),
    plugins.CWRStarPlugin: Known(
        ("cur_class", "model.saved_weights", "model.past_j", "model.cur_j"),
        ("log", "cwr_layer_name", "freeze_remaining_model"),
    ),
    plugins.FromScratchTrainingPlugin: Known(("initial_weights",), ("reset_optimizer",)),
    plugins.LwFPlugin: Known(("lwf.prev_model", "lwf.expcount", "lwf.prev_classes_by_task")),
    plugins.LFLPlugin: Known(("prev_model",), ("lambda_e",)),
    plugins.FeatureDistillationPlugin: Known(("prev_model",), ("alpha", "mode")),
    MaskedCrossEntropy: Known(("current_classes", "old_classes"), ("reduction", "mask")),
}
_SETTINGS = (PurePath, torch.device, torch.dtype)


def state_names(kind: type) -> tuple[str, ...]:
    """Return the attributes that are known to be the state of objects of a class."""
    return tuple(name for known in _known(kind) for name in known.state)


def keeps_tensors_on_device(kind: type) -> bool:
    """Tell whether floating-point tensors among the known state of a class are where the model is."""
    return any(known.on_device for known in _known(kind))


def refuse_hidden_state(holder: Any, strategy: Any) -> None:
    """Refuse an object with an attribute that nothing is known of, and that a checkpoint would lose.

    Raises:
        UnsaveableError: It has one; the message names it, and what to do.
    """
    if keeps_state(holder):
        return
    kind: Any = type(holder)
    declared = {name for base in kind.__mro__ for name in vars(base).get("__constants__", ())}
    declared |= {name.partition(".")[0] for known in _known(kind) for name in (*known.state, *known.settings)}
    criterion = getattr(strategy, "_criterion", None)
    elsewhere = {id(value) for value in (strategy.model, strategy.optimizer, criterion, *strategy.plugins)} - {id(None)}
    hidden = [
        (isinstance(value, SCALARS), name)
        for name, value in vars(holder).items()
        if not (name in declared or id(value) in elsewhere or is_wiring(value) or isinstance(value, _SETTINGS))
    ]
    if hidden:
        _, name = min(hidden)  # rather a container or an object than a number
        names = tuple(sorted(name for _, name in hidden))
        fix = f"give it state_dict() and load_state_dict(state), or __constants__ = {names} where they never change"
        if kind.__module__.startswith("avalanche."):
            fix = "no checkpoint holds what this class of Avalanche keeps"
        raise UnsaveableError(
            f"{kind.__qualname__} keeps state in its attribute {name!r} and cannot be saved: {fix}; or train without "
            'checkpoints, with on_unsaveable="warn"'
        )


def _known(kind: type) -> Iterator[Known]:
    return (known for base, known in _KNOWN.items() if issubclass(kind, base))
