"""The report's pictures: no label is cut off at an edge, however wide it is."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from matplotlib.image import imread

from tasks.report import plots


def picture(uri: str) -> np.ndarray:
    """The pixels of a plot, 0 to 1."""
    pixels: np.ndarray = imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])), format="png")
    return pixels[:, :, :3]


@pytest.mark.parametrize("reach", [0.05, 0.003, 1.0, 25.0, 12345.678, 1e-7])
def test_labels_are_whole(reach: float) -> None:
    """A label that touches an edge is cut off there: the outermost pixels are blank."""
    with plots._Drawing() as drawing:
        drawing.axes.scatter([1, 2], [-reach, reach])
        drawing.axes.set(xlabel="words in the document", ylabel="gain in rougeL (F1, 0 to 1)")
        right = drawing.axes.twinx()
        right.plot([1, 2], [-reach * 3, reach * 3])
        right.set_ylabel("learning rate")
    pixels = picture(drawing.uri)
    for edge in (pixels[:, :3], pixels[:, -3:], pixels[-3:]):
        assert edge.min() == 1.0
    assert (pixels < 0.5).any()
