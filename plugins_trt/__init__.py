"""TensorRT plugins of the WKV operators, and where their built library lies."""
