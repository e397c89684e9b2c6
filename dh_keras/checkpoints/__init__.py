"""Weights that others have trained: from their files to our variables. The only place where axes are permuted."""
