"""A plugin: ``pytest -p tests.portability.as_macos tests/unit tests/cases`` runs a suite as on macOS."""

from tests.portability.lacking import take_away

take_away("macos")
