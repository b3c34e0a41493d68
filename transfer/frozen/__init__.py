"""frozen."""
