"""What becomes of a model's outputs: reduced on the device, carried in one copy, kept in memory or on disk.

`reducing` runs beside the model, `collecting` and `parts` beside the dataset.
"""
