"""A server that speaks OpenAI's chat protocol: `python -m apps.serve --help`."""
