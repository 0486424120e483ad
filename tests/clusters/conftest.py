"""Runs and joined commands are those of the lent machines' tests."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "lending"), str(TESTS / "testing")]
