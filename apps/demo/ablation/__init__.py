"""A tiny VisualRWKV-6 and a tiny HM on the demo's scenes: what scan, prompt, decay and image states each bring."""
