"""The Common Expression Language over JSON: https://cel.dev, with a bound on what an evaluation may cost.

Not a binding of a library: the one that is quick with a comparison copies the whole scope for each evaluation, takes
seconds to filter a few thousand objects, and lets an expression of a hundred characters use up all memory. Here an
evaluation counts its steps, and stops. Of the language there is what JSON needs: no `uint`, `bytes`, messages of
protocol buffers or optionals. One thing is read more kindly: whole numbers and others may be mixed in arithmetic,
because JSON does not tell them apart.
"""
