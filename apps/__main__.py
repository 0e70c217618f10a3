"""`python -m apps VERB`: the command `visualrwkv` where it is not installed."""

from __future__ import annotations

import sys

from apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
