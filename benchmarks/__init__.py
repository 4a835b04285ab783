"""How fast the product is: real processes, a real database, figures instead of a verdict. See docs/performance.md."""
