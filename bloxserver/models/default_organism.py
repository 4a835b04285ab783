"""The organism of a flow that came without one. It is a column's default, hence among the models."""

DEFAULT_ORGANISM = """\
organism:
  name: my-flow
listeners:
  - name: greeter
    payload_class: handlers.hello.Greeting
    handler: handlers.hello.handle_greeting
    description: A friendly greeter agent
    agent: true
    peers: []
"""
