"""Small Pyro programs of every kind that people bring, by theme; `tests/programs.py` puts them together."""
