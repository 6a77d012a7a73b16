"""Marks of fields, for those who ask which keys name files, folders or functions."""

DATA = {"input": True, "data": True}  # files of rows that the run reads: one, several in a list, or a pattern
INPUT = {"input": True}  # a file or folder that the run reads
PLACE = {"place": True}  # a folder that the run writes or uses
FUNCTION = {"function": True}  # the dotted path of a function that it calls
