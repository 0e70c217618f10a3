"""A conversation in the terminal: `python -m apps.chat --help`."""
