"""The tests of `wn` and `wncli`."""
