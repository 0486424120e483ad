"""What users give as a model, read into a graph of layers and a recipe for each.

``read`` is the way in. A layer list says its own shapes; a module needs one batch to be read by.
"""

from manyhands.pipeline.models.reading import Example, Reading, check_extras, needs_example, read

__all__ = ["Example", "Reading", "check_extras", "needs_example", "read"]
