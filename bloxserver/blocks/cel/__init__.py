"""The Common Expression Language (https://cel.dev) over JSON, with a limit on the cost of an evaluation.

This is not a binding of a library. The fastest library copies the whole scope for each evaluation, takes seconds to
filter a few thousand objects, and lets an expression of a hundred characters exhaust the memory. This implementation
counts the steps of an evaluation and stops at a limit. It has the part of the language that JSON needs: no `uint`,
`bytes`, protocol buffer messages or optionals. Unlike in CEL, arithmetic can mix integers and other numbers, because
JSON does not distinguish them.
"""
