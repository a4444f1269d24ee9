"""From a dataset's files to checked rows: what a path stands for, each format's reader, and the rows set down on disk.

One way in for every format: a pass over the file, a row at a time. Nothing here holds a file in memory, or knows a run.
"""
