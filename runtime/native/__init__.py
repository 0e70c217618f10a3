"""The whole step of a language model in one native call, on the CPU.

`src/` is C++ that the package's own build compiles where there is a compiler (`setup.py`); without it, and for models
it does not know, onnxruntime runs the step. It reads the same bundle: `graph` finds the weights in the ONNX file,
`families` checks that the graph is one that the C++ computes, `step` repacks the weights and runs.
"""
