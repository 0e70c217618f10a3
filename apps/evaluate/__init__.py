"""Accuracy of exported bundles on public benchmarks: `python -m apps.evaluate --help`."""
