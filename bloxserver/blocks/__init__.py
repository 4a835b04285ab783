"""Built-in handlers, a file each, and the registry that resolves their names."""
