"""Memory of random patterns: EWC forgets as a power law, plain descent exponentially.

The paper (PNAS version, Fig. 2; prose only, its symbols were re-derived). A linear unit with n = 1000 weights learns
random patterns x in {-1, 1}^n with random targets y in {-1, 1}, one after the other and each once, by least squares
with a penalty that keeps w near its last value: a fixed multiple of the identity (gradient descent) or the Fisher
of all patterns so far, t times the identity (EWC). In closed form

    w <- w + x (y - w.x) / (n + beta),   beta = 1 (gradient descent) or beta = t (EWC).

After t patterns the signal is the mean of y_1 (w.x_1), the noise the standard deviation of the answer to a pattern
never learnt (the root mean square of |w|), and a pattern is retained while signal / noise > 1. Expected: signal
exp(-t/n) or n / (n + t); noise (t/n)^1/2 while t << n; so EWC's ratio has slope -1/2 on log-log axes everywhere and
gradient descent's leaves that line around t = n. Beyond capacity EWC loses all patterns at once, plain descent keeps
the newest.

What we do: the same, 400 simulations; both arms see the same patterns under the same seed.
Deviations: the signal is that of the first `tracked` patterns, not of the first alone, which takes most of the scatter
out and changes ages by less than n / 50; the threshold 1 is from memory, the paper's number was unreadable; the
paper has one set of simulations, we have one for each seed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.experiment import Context, Experiment, Row, Run
from benchmarks.harness.files import write_atomically
from benchmarks.harness.papers import paper
from benchmarks.harness.unfinished import readable
from benchmarks.report.table import mean_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 256  # patterns drawn at a time


@dataclass(frozen=True)
class Settings:
    """Random patterns."""

    n: int = 1000
    """Number of weights."""
    load: float = 10.0
    """Patterns learnt, in units of n."""
    simulations: int = 400
    """Simulations that signal and noise are averaged over."""
    chunk: int = 50
    """Simulations run together; progress is saved after each chunk."""
    points: int = 60
    """Log-spaced times at which memory is tested."""
    tracked: int = 20
    """The signal is the mean over the first so many patterns."""
    probes: int = 200
    """Evenly spaced patterns tested for the fraction retained."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Signal, noise and fraction of patterns retained after t patterns."""
    if settings.n < 1 or settings.simulations < 1 or settings.chunk < 1:
        raise ValueError(f"n, simulations and chunk must be at least 1, got {settings}")
    last = round(settings.load * settings.n)
    times = np.unique(np.append(np.geomspace(1, last, settings.points).round().astype(int), settings.n))
    spaced = np.linspace(1, last, settings.probes).round().astype(int)
    probes = np.union1d(np.arange(1, settings.tracked + 1), spaced)
    sums = np.zeros((len(times), len(probes) + 1))  # of probes' signals, and of |w|^2
    done = 0
    if context.resume and context.checkpoint is not None:
        with (
            readable(context.checkpoint),
            context.checkpoint.open("rb") as file,
            np.load(file, allow_pickle=False) as saved,
        ):
            sums, done = saved["sums"], int(saved["done"])

    while done < settings.simulations:
        size = min(settings.chunk, settings.simulations - done)
        sums += simulate(settings.n, arm, times, probes, size, (seed, done), context, done, settings.simulations)
        done += size
        if context.checkpoint is not None:
            buffer = io.BytesIO()
            np.savez(buffer, sums=sums, done=done)
            write_atomically(context.checkpoint, buffer.getvalue())

    signals, noise = sums[:, :-1] / done, np.sqrt(sums[:, -1] / done)
    learnt = probes <= times[:, None]
    counted = learnt & np.isin(probes, spaced)
    retained = ((signals > noise[:, None]) & counted).sum(1) / counted.sum(1)
    signal = signals.mean(1, where=learnt & (probes <= settings.tracked))
    snr = signal / noise
    if context.logdir is not None:
        log_curves(context, times, snr, retained)
    return {
        "slope": slope(times, snr) if arm == "ewc" else None,
        "rate": rate(times / settings.n, signal),
        "retained_n": float(retained[times == settings.n][0]),
        "t": times,
        "signal": signal.round(6),
        "noise": noise.round(6),
        "retained": retained.round(4),
    }


def simulate(
    n: int,
    arm: str,
    times: np.ndarray,
    probes: np.ndarray,
    size: int,
    seed: tuple[int, int],
    context: Context,
    done: int,
    total: int,
) -> np.ndarray:
    """Sums over `size` simulations: (times, probes + 1), the signals of the probes and last |w|^2."""
    random = np.random.default_rng(seed)
    weights = np.zeros((size, n), dtype=np.float32)
    kept = np.zeros((len(probes), size, n), dtype=np.float32)  # y x of each probe
    sums = np.zeros((len(times), len(probes) + 1))
    last, row, probe = int(times[-1]), 0, 0
    for t in range(1, last + 1):
        if (t - 1) % BLOCK == 0:
            bits = np.frombuffer(random.bytes(BLOCK * size * -(-n // 8)), np.uint8).reshape(BLOCK, size, -1)
            patterns = np.unpackbits(bits, axis=2, count=n).astype(np.float32) * 2 - 1
            labels = random.integers(2, size=(BLOCK, size)).astype(np.float32) * 2 - 1
            context.progress(done * last + size * t, total * last, "")
        x, y = patterns[(t - 1) % BLOCK], labels[(t - 1) % BLOCK]
        error = y - np.einsum("sn,sn->s", weights, x)
        weights += x * (error / np.float32(n + (t if arm == "ewc" else 1)))[:, None]
        if probe < len(probes) and t == probes[probe]:
            kept[probe] = x * y[:, None]
            probe += 1
        if t == times[row]:
            sums[row, :probe] = np.einsum("psn,sn->p", kept[:probe], weights, optimize=True)
            sums[row, -1] = np.square(weights, dtype=np.float64).sum()
            row += 1
    return sums


def slope(times: np.ndarray, snr: np.ndarray) -> float:
    """Slope of log(snr) over log(t), least squares over log-spaced times."""
    if (snr <= 0).any():
        raise ValueError("a signal is below zero: raise `simulations` or lower `load`")
    return float(np.polyfit(np.log(times), np.log(snr), 1)[0])


def rate(loads: np.ndarray, signal: np.ndarray) -> float:
    """The r for which exp(-r t/n) fits the signal best, least squares over t <= 4 n."""
    from scipy.optimize import curve_fit

    use = loads <= 4
    fitted, _ = curve_fit(lambda load, r: np.exp(-r * load), loads[use], signal[use], p0=[1.0])
    return float(fitted[0])


def log_curves(context: Context, times: np.ndarray, snr: np.ndarray, retained: np.ndarray) -> None:
    """Both curves to TensorBoard, over t."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(context.logdir)) as writer:
        for t, ratio, share in zip(times.tolist(), snr.tolist(), retained.tolist(), strict=True):
            writer.add_scalar("signal_to_noise", ratio, t)
            writer.add_scalar("fraction_retained", share, t)


def rows(runs: Sequence[Run]) -> list[Row]:
    """EWC's slope, plain descent's rate, and what is left beyond capacity."""
    numbers = paper("ewc")["patterns"]
    return [
        mean_row(
            runs,
            "ewc",
            "log-log slope of SNR",
            value=lambda run: run.measurements["slope"],
            paper=numbers["ewc_slope"],
            target=("within", -0.5, 0.05),
            note="fit over 1 <= t <= 10 n; paper: prose",
        ),
        mean_row(
            runs,
            "sgd",
            "rate of exp(-rate t/n)",
            value=lambda run: run.measurements["rate"],
            paper=numbers["sgd_rate"],
            target=("within", 1.0, 0.1),
            note="fit of the signal over t <= 4 n; paper: prose",
        ),
        *(
            mean_row(
                runs,
                arm,
                "fraction retained at t = n",
                value=lambda run: run.measurements["retained_n"],
                note="paper, in words: EWC is the worse one beyond capacity",
            )
            for arm in ("ewc", "sgd")
        ),
    ]


def figure(runs: Sequence[Run]) -> Figure:
    """Signal to noise over t with the paper's laws, and the fraction retained."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2)
    n = runs[0].settings["n"]
    for arm, label, colour in (("ewc", "EWC", "tab:red"), ("sgd", "plain descent", "tab:blue")):
        own = [run.measurements for run in runs if run.arm == arm]
        if not own:
            continue
        t = np.array(own[0]["t"])
        snr = np.mean([np.array(one["signal"]) / np.array(one["noise"]) for one in own], axis=0)
        left.loglog(t, np.where(snr > 0, snr, np.nan), "o", ms=3, color=colour, label=f"{label}, measured")
        right.semilogx(t, np.mean([one["retained"] for one in own], axis=0), color=colour, label=label)
    times = np.geomspace(1, 10 * n, 200)
    noise = np.sqrt(-np.expm1(-times / n))  # mean |w|^2 of gradient descent, n large
    left.loglog(times, np.sqrt(n / times), "--", color="tab:red", lw=1, label="slope -1/2")
    left.loglog(times, np.exp(-times / n) / noise, "--", color="tab:blue", lw=1, label="exponential")
    left.axhline(1, color="grey", lw=0.5)
    left.set(xlabel="patterns learnt t", ylabel="signal / noise of the first patterns", ylim=(1e-2, 2 * np.sqrt(n)))
    left.legend(fontsize="small")
    right.axvline(n, color="grey", lw=0.5)
    right.set(xlabel="patterns learnt t", ylabel="fraction with signal / noise > 1")
    right.legend(fontsize="small")
    return fig


EXPERIMENT = Experiment(
    name="ewc-patterns",
    title="EWC, PNAS Fig. 2: signal to noise of random patterns",
    data="random patterns",
    arms=("ewc", "sgd"),
    scales={
        "smoke": Settings(n=50, simulations=20, chunk=10, points=20, tracked=2, probes=20),
        "cpu": Settings(),
        "paper": Settings(),
    },
    minutes={"smoke": 0.02, "cpu": 0.5, "paper": 0.5},
    measure=measure,
    rows=rows,
    figure=figure,
)
