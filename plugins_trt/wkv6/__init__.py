"""The WKV-6 plugin: kernels, their plugin, and their meaning in NumPy."""
