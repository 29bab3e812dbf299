"""What was measured: a folder a study, with its code, its kept results and the page in docs/ that they make.

Run one from the repository's root, `python -m studies.NAME`; it is no part of the wheel.
"""
