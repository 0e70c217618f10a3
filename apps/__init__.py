"""Programs built on the runtime: thin, and readable as examples."""
