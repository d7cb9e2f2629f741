"""The half of the conformance runner that lives inside the interpreter under test.

Standard library only, and nothing newer than Python 3.10: every supported interpreter runs it.
"""
