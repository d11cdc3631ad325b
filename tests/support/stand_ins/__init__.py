"""Small models with the names, the loading and the weight norm of public projects; written anew.

The how-to pages import them as those projects' own modules (`from models import Generator`):
`tests/support/document_files.py` copies each beside the files that a page works on.
"""
