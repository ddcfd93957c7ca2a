"""An importer of ONNX graphs into an ``nn.Module`` whose layers can be changed and written back.

``graph`` reads the file into plain Python; ``operators`` is the table of what is known; ``layers`` are the nodes that
have weights, ``nodes`` the others, ``opaque`` those that ONNX Runtime must run; ``build`` puts them together on an
example; ``module`` is what comes out, ``write`` puts its weights back into the graph; ``batch`` frees the batch
dimension and ``verify`` compares with ONNX Runtime.
"""
