"""Pages of the documentation that are generated from the code; MkDocs calls `hooks.py`."""
