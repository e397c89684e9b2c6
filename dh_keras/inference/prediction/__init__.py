"""Detect in many files: which files, in what order, how the work goes on after a stop, and what is written.

From the command line to the result: sources -> folder -> runner (images, video) -> results; merge joins the folders of
several processes.
"""
