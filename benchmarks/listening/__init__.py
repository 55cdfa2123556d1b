"""The page to listen to (`benchmarks/listening_page.py`): questions, choice of clips, kinds of failure, Markdown."""
