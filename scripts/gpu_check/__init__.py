"""The runner of a GPU check: Python 3.8 or newer, nothing but its standard library."""
