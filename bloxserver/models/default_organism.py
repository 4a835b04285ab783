"""The default of `flows.organism_yaml`."""

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
