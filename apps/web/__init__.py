"""What every program with a web address shares: who may come in, and where it listens."""
