"""Where the tests find the project, its service files, real data and the simulated GPU."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent
SYSTEMD = ROOT / "systemd"
SIMULATED_GPU = SUPPORT / "simulated_gpu"
DATA = Path(os.environ.get("RECALD_DATA", ROOT.parent / "shared" / "data"))
