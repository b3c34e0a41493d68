"""The one place through which content of other people's files enters: each reader with its limits.

A checkpoint, a record, a predictions file, a table of contents of a tar file may come from anybody. Each reader
here returns plain values within stated limits of size, depth, number and type, or raises `DataError` with
one line that names the file; none calls anything that a file names.
"""
