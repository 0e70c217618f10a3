"""TensorRT plugins of the WKV recurrences and of 8-bit weights: build them, and find what was built.

import plugins_trt
path = plugins_trt.build(architectures="87")  # on a Jetson Orin; minutes, once
path = plugins_trt.library()                  # afterwards
registry.load_library(str(path))              # tensorrt.get_plugin_registry()
"""

from plugins_trt.builder import build, fingerprint, library, sources
from plugins_trt.errors import PluginError

__all__ = ["PluginError", "build", "fingerprint", "library", "sources"]
