"""Let the tests of this folder import what they share, `operator_cases`: importlib mode leaves it off the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
