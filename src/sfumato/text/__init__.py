"""The frozen text encoder and the bank of encoded prompts."""
