"""hsetvae."""
