"""A real Celery worker of one role whose movers are scripted. `python scripted_worker.py SIDE`, settings as usual."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from config.settings import load_settings
from tasks.app import run_worker
from workers.pairing.contract import Side

if __name__ == "__main__":
    mover = (sys.executable, str(Path(__file__).with_name("scripted_mover.py")))
    sys.exit(run_worker(load_settings(), Side(sys.argv[1]), mover))
