"""Joint validity: does what is emitted at once hold together?"""
