"""How fast a bundle is on this machine: `python -m apps.bench --help`."""
