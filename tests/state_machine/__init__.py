"""Random sequences of API calls, compared with a model: a state machine of hypothesis.

`model.py` says what the calls lead to, and `checks.py` compares it with the API after each step. The steps are in
`*_steps.py`, a module for each resource. The class of a new one becomes a base of `ApiMachine`.
"""
