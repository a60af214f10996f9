"""The end of a run says how many random specs and inputs were tried, over all workers.

No test depends on how busy the machine is: hypothesis has no deadline, and does not judge how fast it draws.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.counting import TRIED

TOTAL: Counter[str] = Counter()

settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist hands its counts over; without workers they are here already."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is None:
        TOTAL.update(TRIED)
    else:
        output["tried"] = dict(TRIED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    TOTAL.update(getattr(node, "workeroutput", {}).get("tried", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TOTAL:
        told = ", ".join(f"{n:,} {what}" for what, n in sorted(TOTAL.items()))
        terminalreporter.write_line(f"tried: {told}")
