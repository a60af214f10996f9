"""A plugin: ``pytest -p tests.portability.as_windows tests/unit/spec`` runs what reads as on Windows."""

from tests.portability.lacking import take_away

take_away("windows")
