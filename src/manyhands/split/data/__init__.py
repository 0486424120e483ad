"""Where samples come from: what a user gives as a dataset, opened as something with indices.

Start with :func:`~manyhands.split.data.opening.open_dataset`. Nothing here knows batches, seeds of items, workers
or the network.
"""

from manyhands.split.data.columns import Columns
from manyhands.split.data.opening import dataset_length, open_dataset
from manyhands.split.data.parts import Part, split_dataset
from manyhands.split.data.simple import create_simple_dataset
from manyhands.split.data.streams import is_stream

__all__ = [
    "Columns",
    "Part",
    "create_simple_dataset",
    "dataset_length",
    "is_stream",
    "open_dataset",
    "split_dataset",
]
