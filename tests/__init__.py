"""Tests of amortize; a package so that shared helpers such as ``tests.statistics`` can be imported."""
