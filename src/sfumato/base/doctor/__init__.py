"""`sfumato doctor`: what this machine offers, what contradicts, how to solve it."""
