"""How large a step."""
