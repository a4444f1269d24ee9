"""From the annotation formats that datasets are published in to the project's own: problem, solution, image, task.

One file for each format, which yields rows in the file's order; `annotations` reads files and names what is wrong in
them, `pictures` finds the images, `output` writes, and `command` is the command line.
"""
