"""``python -m llamagen.cli``."""

from llamagen.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
