"""Marks of fields, for those who ask which keys name files, folders or functions."""

INPUT = {"input": True}  # a file or folder that the run reads
MODEL = {
    "input": True,
    "hub": "model",
    "of_run": True,
}  # the same, or a run's folder for its model, or a name on the hub
ADAPTER = {**MODEL, "adapter": True}  # one of LoRA, or the run or model that it was left beside
LANGUAGE_MODEL = {**MODEL, "language_model": True}  # one that writes replies
COMPARED = {"input": True, "hub": "model", "language_model": True}  # the same, or a run's folder, whose log is read too
REWARD_MODEL = {**MODEL, "reward_model": True}  # one that scores them
TOKENIZER = {"input": True, "hub": "tokenizer", "of_run": True}
DATA = {
    "input": True,
    "data": True,
    "hub": "data",
}  # files of rows: one, several in a list, a pattern, or a split there
ANY = {"input": True, "hub": "any"}  # for others to read as one of those
PLACE = {"place": True}  # a folder that the run writes or uses
FUNCTION = {"function": True}  # the dotted path of a function that it calls
