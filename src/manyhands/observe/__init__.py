"""What a run shows: progress, metric files, rates, and text that is safe to show.

Takes numbers and prints them; opens no socket and knows nothing of runs. Modules are imported by name.
"""
