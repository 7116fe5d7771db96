"""Images that every one of Avalanche's loggers takes."""

from __future__ import annotations

import io
from functools import cached_property
from typing import Any

import numpy as np
import torch
from avalanche.evaluation.metric_results import TensorImage
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

__all__ = ["Picture"]


class Picture(TensorImage):
    """A `TensorImage` for Weights & Biases, too, which takes bytes (H, W, 3) and no matplotlib figure without plotly.

    TensorBoard reads `image`, Weights & Biases the whole as an array, and text loggers leave it out.

    Args:
        source: (3, H, W), floating point from 0 to 1 or bytes; or a figure, which is drawn when it is first looked at.
    """

    def __init__(self, source: Tensor | Figure) -> None:
        self._source = source

    @property
    def image(self) -> Tensor:  # type: ignore[override]
        """The image, (3, H, W); bytes if it is a figure's."""
        if isinstance(self._source, Figure):
            canvas = FigureCanvasAgg(self._source)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            self._source = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        return self._source

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return bytes (H, W, 3)."""
        image = self.image
        if image.is_floating_point():
            image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        return image.cpu().permute(1, 2, 0).contiguous().numpy().astype(dtype or np.uint8)

    @cached_property
    def png(self) -> bytes | None:
        """A figure as a PNG file, for checkpoints: histories keep figures for ever. Else None."""
        if self.image.is_floating_point():
            return None
        file = io.BytesIO()
        Image.fromarray(np.asarray(self)).save(file, format="PNG")
        return file.getvalue()
