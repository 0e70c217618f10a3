"""Weight-only quantisation of exported graphs: recipes, weight formats, graph rewriting. No torch."""
