"""The WKV-7 plugin: kernels, their plugin, and their meaning in NumPy."""
