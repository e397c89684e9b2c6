"""Detect in many files: which files, in what order, how the work goes on after a stop, and what is written.

From the command line to the result: sources -> folder -> predict_files (image_files, video) -> result_files; merge
joins the folders of several processes.
"""
