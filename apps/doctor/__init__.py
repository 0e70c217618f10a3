"""What this machine is, what it can run, and whether a bundle fits: probes, verdicts, a report."""
