"""A company that does not exist, and providers that tell of it as the real ones would.

Imports none of ours from outside: what it sends must not be made by the code that reads it.
"""
