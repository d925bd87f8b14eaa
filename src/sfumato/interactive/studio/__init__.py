"""`sfumato studio`: pages and an API to make, compare and evolve pictures.

Nothing here imports torch at its top: the page is there before the model's libraries are.
"""
