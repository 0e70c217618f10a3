"""The plugin that reads an image state (VisualRWKV-HM): kernel, plugin, and its meaning in NumPy."""
