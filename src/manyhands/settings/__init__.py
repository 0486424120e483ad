"""What a user may set, where each value comes from, and where this user's own files live.

The only room that reads the environment; it loads no torch.
"""

from manyhands.settings.model import Settings
from manyhands.settings.paths import ensure_state_dir, state_dir
from manyhands.settings.sources import Explained, explain, load

__all__ = ["Explained", "Settings", "ensure_state_dir", "explain", "load", "state_dir"]
