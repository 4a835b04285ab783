"""Tables, column types and the database."""
