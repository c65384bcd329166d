"""Loaded by every Python process that has this folder on its path: its wall clock is off by CLOCK_OFF_SECONDS."""

from __future__ import annotations

import os
import time

_right = time.time
_off_seconds = float(os.environ.get("CLOCK_OFF_SECONDS", "0"))


def _wrong() -> float:
    return _right() + _off_seconds


time.time = _wrong
