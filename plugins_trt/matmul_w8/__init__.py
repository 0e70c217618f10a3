"""The product with 8-bit weights: kernels, their plugin, and their meaning in NumPy."""
