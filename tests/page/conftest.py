"""What the pages of runs are tested with."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("page", deadline=None)
settings.load_profile("page")
