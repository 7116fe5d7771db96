"""Training scholars outside a strategy: on arrays of images, or on another scholar's samples alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.data.arrays import Arrays


def learn_solver(solver: Any, teacher: Any, arrays: Arrays, settings: Any) -> None:
    """Train a solver on a teacher's samples and answers, or on the data where there is no teacher."""
    optimizer = torch.optim.Adam(solver.parameters(), lr=settings.lr)
    if teacher is not None:
        teacher.teach(solver, optimizer, iterations=settings.iterations, batch_size=settings.batch_size)
        return
    device = next(solver.parameters()).device
    for _ in range(settings.iterations):
        rows = torch.randint(len(arrays.y_train), (settings.batch_size,))
        optimizer.zero_grad()
        answers = solver(images_of(arrays.x_train[rows.numpy()]).to(device))
        torch.nn.functional.cross_entropy(answers, torch.from_numpy(arrays.y_train)[rows].to(device)).backward()
        optimizer.step()


def learn_generator(generator: Any, teacher: Any, arrays: Arrays, steps: int, device: str) -> Iterator[int]:
    """Train a generator on a teacher's samples, or on the data; yields the number of every step."""
    for step in range(steps):
        if teacher is None:
            x = images_of(arrays.x_train[torch.randint(len(arrays.y_train), (generator.batch_size,)).numpy()])
        else:
            x = teacher.source(generator.batch_size, None)
        generator.fit_batch(x.to(device), None, 1.0)
        yield step


def accuracy_on_test(solver: Any, arrays: Arrays) -> float:
    """Accuracy on the test images."""
    with torch.no_grad():
        answers = solver.eval()(images_of(arrays.x_test).to(next(solver.parameters()).device))
    return float((answers.argmax(1).cpu() == torch.from_numpy(arrays.y_test)).float().mean())


def images_of(pixels: Any) -> Any:
    """Images (N, H, W) or (N, H, W, C) uint8 as tensors (N, C, H, W) in [0, 1]."""
    images = torch.from_numpy(pixels)
    return (images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)).float() / 255
